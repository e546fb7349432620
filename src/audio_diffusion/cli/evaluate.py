"""How good is a model? Checkpoint + held-out shards -> figures, a table and a picture. Needs no Trainer and no W&B.

python evaluate.py ckpt=runs/quickstart
python evaluate.py ckpt=step_00010000.ckpt data='shards/test-*.tar' num_clips=null flow=null
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from audio_diffusion.checkpoints.redaction import REDACTED, redacted, without_redacted
from audio_diffusion.cli import config
from audio_diffusion.cli.config import ConfigError, build
from audio_diffusion.cli.interruption import CtrlC, end
from audio_diffusion.cli.output import default_folder
from audio_diffusion.data.batch import AudioBatch, collate, counted
from audio_diffusion.data.remote import RemoteError, RemoteStore
from audio_diffusion.data.shards.shards import Shards, by_name, find_held_out
from audio_diffusion.data.stream import read_in_order
from audio_diffusion.inference.checkpoint_reader import device_of
from audio_diffusion.inference.loading import load
from audio_diffusion.inference.model import Model
from audio_diffusion.metrics import pictures
from audio_diffusion.metrics.bits import ClipBounds, Estimate, count_dims, estimate, value_counts, white_gaussian
from audio_diffusion.metrics.coding import coded_samples


def patterns(model: Model, data: str | None) -> list[str]:
    """The patterns of the shards to evaluate on, by the rules of ``shards`` in configs/evaluate.yaml.

    Raises:
        ConfigError: if secrets were redacted from the shards' address in the checkpoint.
    """
    trained_on: Any = model.config.get("data")
    if data is None and not trained_on:
        raise ConfigError("data: an exported model does not know where its data are; give shards: data=SHARDS")
    if data is None and REDACTED in str((trained_on["train"], trained_on["val"])):
        raise ConfigError("data: the address of the training data was stored without its secrets; give it: data=SHARDS")
    if data is not None and not Path(data).is_dir() and data.endswith(".tar"):
        return [data]
    train: Any
    train, val = (trained_on["train"], trained_on["val"]) if data is None and trained_on else (data, None)
    try:
        found = find_held_out(train, val, make_store(model))
    except RemoteError as error:
        raise ConfigError(f"data: {error}") from error
    if not found:
        where = data or ", ".join(by_name(train).values())
        raise ConfigError(
            f"data: expected held-out shards (val-*.tar) in {where}, found none; give shards to evaluate on: "
            "data=SHARDS, or, of those that were trained on, which tells little of new clips: 'data=SHARDS/train-*.tar'"
        )
    return list(found.values())


def make_store(model: Model) -> RemoteStore:
    """Creates the store that reads remote shards."""
    options = ((model.config.get("data") or {}).get("store") or {}).get("storage_options")
    return RemoteStore(None, storage_options=without_redacted(options))


def find_shards(model: Model, data: str | None) -> Shards:
    """Opens the shards to evaluate on.

    Raises:
        ConfigError: if there are none.
    """
    found = patterns(model, data)
    try:
        return Shards.open(found, make_store(model), (model.config.get("data") or {}).get("audio_member"))
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error


def read(model: Model, shards: Shards, num_clips: int | None, batch_size: int) -> Iterator[AudioBatch]:
    """Yields batches of the first usable clips, cropped at their start."""
    audio, fields = model.config["audio"], model.conditions.fields
    clips = read_in_order(shards, audio["sample_rate"], audio["channels"], audio["num_samples"], model.classes, fields)
    usable = islice(((clip, samples) for clip, samples in clips if clip.num_valid), num_clips)
    while batch := list(islice(usable, batch_size)):
        audios, known = torch.stack([samples for _, samples in batch]), [clip for clip, _ in batch]
        yield collate(audios, known, bool(model.classes), fields)


def likelihood(model: Model, batches: Iterable[AudioBatch], options: dict[str, Any], device: torch.device) -> dict:
    """Measures bits per dimension by the bound and by the flow, as plain data; after Ctrl-C of the finished batches."""
    bound = build(options["bound"], "bound") if options["bound"] else None
    flow = build(options["flow"], "flow") if options["flow"] else None
    bounds: list[ClipBounds] = []
    nats, nfe, dims, counts = [], [], [], torch.zeros(2**16, dtype=torch.int64)
    with CtrlC() as ctrl_c:
        for batch in tqdm(batches, desc="likelihood", unit="batch"):
            on_device = batch.to(device)
            cond = model.conditions.read({**on_device.cond, "audio": on_device.audio}, device)
            clips = (
                model.process.denoiser(model.net, cond),
                model.process.schedule,
                on_device.audio,
                on_device.mask,
                model.representation,
                [(options["seed"], key) for key in batch.keys],
            )
            by_bound, by_flow = bound(*clips) if bound else None, flow(*clips) if flow else None
            with ctrl_c.held():
                dims.append(count_dims(batch.audio, coded_samples(model.representation, batch.mask)))
                counts += value_counts(batch.audio, batch.mask)
                if by_bound:
                    bounds.append(by_bound)
                if by_flow:
                    nats.append(by_flow.nats)
                    nfe.append(by_flow.nfe)
    if not dims and ctrl_c.received:
        end("no batch was finished, so there are no figures; a smaller batch_size or num_clips is finished sooner")
    if not dims:
        raise ConfigError("data: none of the clips can be used")
    results: dict[str, Any] = {
        "clips": sum(len(of_batch) for of_batch in dims),
        "interrupted": ctrl_c.received,
        "dimensions": int(counts.sum()),
        "white_gaussian": {"bits_per_dim": white_gaussian(counts)},
    }
    if bound:
        joined = ClipBounds.join(bounds)
        parts = {name: asdict(part) for name, part in joined.parts().items()}
        results["bound"] = {**asdict(joined.estimate()), "parts": parts, "curve": asdict(joined.curve())}
        results["bound"]["title"] = joined.describe()
    if flow:
        evaluations = torch.cat(nfe).double().mean().item()
        results["flow"] = {**asdict(estimate(torch.cat(nats), torch.cat(dims))), "network_evaluations": evaluations}
    return results


def table(results: dict[str, Any]) -> str:
    """Formats the printed table: one figure per line, with its errors, or "-" for unknown ones."""
    figures = {"variational bound": results.get("bound")}
    figures |= {f"    {name}": part for name, part in results.get("bound", {}).get("parts", {}).items()}
    figures |= {
        "probability-flow ODE": results.get("flow"),
        "white Gaussian of this level": results["white_gaussian"],
    }
    lines = [f"{'':30}{'bits/dim':>10}{'± clips':>10}{'± noise':>10}"]
    for name, figure in figures.items():
        if figure:
            values = (figure.get(key, math.nan) for key in Estimate.__annotations__)
            lines.append(f"{name:30}" + "".join("         -" if math.isnan(v) else f"{v:10.4f}" for v in values))
    return "\n".join(lines)


def verdict(results: dict[str, Any]) -> list[str]:
    """Explains the figures in words: lower is better; a model whose figure is above white noise has learnt nothing."""
    noise = results["white_gaussian"]["bits_per_dim"]
    lines = ["bits per dimension: lower is better; white noise of the same level is what a model must fall below"]
    for key, name in (("bound", "variational bound"), ("flow", "probability-flow ODE")):
        if key in results:
            bits = results[key]["bits_per_dim"]
            word = "better" if bits < noise else "worse"
            line = f"{name}: {bits:.4g} bits is {word} than the {noise:.4g} of white noise"
            more = "" if bits < noise else ": the model has not learnt such sounds, or the shards are unlike its data"
            lines.append(line + more)
    return lines


def _without_nan(value: Any) -> Any:
    """Replaces NaN, which json does not support, by None."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def main(cfg: DictConfig) -> None:
    """Loads the model, measures batch by batch, prints and writes the figures."""
    options: dict[str, Any] = config.to_plain(cfg)
    for name in ("bound", "flow"):  # before any data are read
        if options[name]:
            build(options[name], name)
    device = device_of(options["device"])
    model = load(options["ckpt"], weights=options["weights"], device=device, trust=options["trust"])
    if not model.representation.exact:
        raise ConfigError(
            f"ckpt: the likelihood needs an exact representation, got {type(model.representation).__name__}"
        )
    shards = find_shards(model, options["shards"])
    print(f"{model.source}: step {model.step}, {model.weights.upper()} weights, on {device}")

    batches = read(model, shards, options["num_clips"], options["batch_size"])
    results = likelihood(model, batches, options, device)
    output = Path(options["output"] or default_folder(model, options["ckpt"], "evaluation"))
    output.mkdir(parents=True, exist_ok=True)
    about = {
        "ckpt": str(model.source),
        "step": model.step,
        "weights": model.weights,
        "data": redacted(patterns(model, options["shards"])),
    }
    everything = {**about, "seed": options["seed"], "likelihood": results}
    (output / "evaluation.json").write_text(json.dumps(_without_nan(everything), indent=1), encoding="utf-8")
    print(table(results))
    for line in verdict(results):
        print(line)
    if "bound" in results:
        curve = results["bound"]["curve"]
        figure = pictures.noise_levels(curve["snr_db"], curve["loss"], curve["bits_per_db"], results["bound"]["title"])
        print(f"what each noise level costs: {pictures.save(figure, output / 'noise_levels.png')}")
    print(f"all figures: {output}/evaluation.json")
    if results["interrupted"]:
        end(f"the figures are of the {counted(results['clips'], 'clip')} that were finished; kept in {output}/")
