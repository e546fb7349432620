"""The peers, each with the settings that its authors publish: network, loss, optimizer, EMA and sampler are theirs.

What they leave open is said in README.md: the size of the networks, and how the label enters them.
"""

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import lightning as L
import torch
from budget import now
from corpora import Corpus
from torch import Tensor, nn

from audio_diffusion.data.batch import AudioBatch
from audio_diffusion.data.datamodule import AudioDataModule
from audio_diffusion.data.order import StreamOrder
from audio_diffusion.data.stream import Reading
from audio_diffusion.data.training_data import CropFormat

BATCH = 16
HELD_OUT = 64  # clips of the held-out loss, by which a learning rate is chosen


class Peer(Protocol):
    """A network with its objective and its sampler."""

    net: nn.Module  # all that is trained and averaged
    optimizer: Mapping[str, Any]  # options of AdamW but for the learning rate
    ema_max: float  # the decay after n steps is min(ema_max, 1 - (1 + n)^-ema_power)
    ema_power: float
    clip_norm: float | None  # of the gradient

    def factor(self, spent: float) -> float:
        """Factor of the learning rate when a share of the time is spent."""
        ...

    def loss(self, audio: Tensor, label: Tensor) -> Tensor:
        """The training loss of a batch ``[B, C, T]``; labels ``[B]`` from 0, all 0 without classes."""
        ...

    def sample(self, noise: Tensor, label: Tensor, calls: int) -> Tensor:
        """Audio ``[B, C, T]`` from noise by so many network calls."""
        ...


class AudioDiffusionPytorch:
    """audio-diffusion-pytorch 0.1.3 with the U-Net of a-unet; optimizer and EMA as in its trainer's configurations."""

    ema_max, ema_power, clip_norm = 0.995, 0.7, None
    optimizer = MappingProxyType({"betas": (0.95, 0.999), "eps": 1e-6, "weight_decay": 1e-3})

    def __init__(self, channels: int, num_samples: int, classes: int):
        from audio_diffusion_pytorch import DiffusionModel, UNetV0, VDiffusion, VSampler

        model = DiffusionModel(
            net_t=UNetV0,
            in_channels=channels,
            channels=[8, 32, 64, 128, 256, 448],
            factors=[1, 4, 4, 4, 2, 2],
            items=[1, 2, 2, 2, 2, 2],
            attentions=[0, 0, 0, 0, 1, 1],
            attention_heads=8,
            attention_features=64,
            modulation_features=1024,
            diffusion_t=VDiffusion,
            sampler_t=VSampler,
        )
        self.net = nn.ModuleDict({"model": model, "label": nn.Embedding(max(1, classes), 1024)})

    def factor(self, spent: float) -> float:
        """Constant."""
        return 1.0

    def loss(self, audio: Tensor, label: Tensor) -> Tensor:
        """See ``Peer``."""
        return self.net["model"](audio, features=self.net["label"](label))

    def sample(self, noise: Tensor, label: Tensor, calls: int) -> Tensor:
        """See ``Peer``."""
        return self.net["model"].sample(noise, num_steps=calls, features=self.net["label"](label))


class Diffusers:
    """UNet1DModel of diffusers, trained as its example of unconditional generation: DDPM, cosine rate after a
    warm-up."""

    ema_max, ema_power, clip_norm = 0.9999, 0.75, 1.0
    optimizer = MappingProxyType({"betas": (0.95, 0.999), "eps": 1e-8, "weight_decay": 1e-6})

    def __init__(self, channels: int, num_samples: int, classes: int):
        from diffusers import DDPMScheduler, UNet1DModel

        self.classes = max(1, classes)
        width = 32
        self.net = UNet1DModel(
            sample_size=num_samples,
            in_channels=channels + self.classes,
            out_channels=channels,
            extra_in_channels=width,
            time_embedding_type="positional",
            flip_sin_to_cos=True,
            use_timestep_embedding=False,
            block_out_channels=(width, 32, 64, 64, 128, 128, 256, 256),
            down_block_types=("DownBlock1DNoSkip", *["DownBlock1D"] * 4, *["AttnDownBlock1D"] * 3),
            up_block_types=(*["AttnUpBlock1D"] * 3, *["UpBlock1D"] * 4, "UpBlock1DNoSkip"),
            mid_block_type="UNetMidBlock1D",
        )
        self.train_scheduler = DDPMScheduler(num_train_timesteps=1000)

    def factor(self, spent: float) -> float:
        """Cosine to 0, after a warm-up of a twentieth of the time."""
        return min(1.0, 20 * spent + 1e-3) * 0.5 * (1 + math.cos(math.pi * min(1.0, spent)))

    def _predict(self, audio: Tensor, t: Tensor, label: Tensor) -> Tensor:
        one_hot = nn.functional.one_hot(label, self.classes).to(audio)[:, :, None].expand(-1, -1, audio.shape[-1])
        return self.net(torch.cat([audio, one_hot], dim=1), t).sample

    def loss(self, audio: Tensor, label: Tensor) -> Tensor:
        """See ``Peer``."""
        noise = torch.randn_like(audio)
        t = torch.randint(0, 1000, (len(audio),), device=audio.device)
        noisy = self.train_scheduler.add_noise(audio, noise, t)
        return nn.functional.mse_loss(self._predict(noisy, t, label), noise)

    def sample(self, noise: Tensor, label: Tensor, calls: int) -> Tensor:
        """See ``Peer``; by its UniPC, the method that this project has, too, on the schedule of the training."""
        from diffusers import UniPCMultistepScheduler

        scheduler = UniPCMultistepScheduler.from_config(self.train_scheduler.config)
        scheduler.set_timesteps(calls, device=noise.device)
        x = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            output = self._predict(scheduler.scale_model_input(x, t), t.expand(len(x)), label)
            x = scheduler.step(output, t, x).prev_sample
        return x


class PeerSystem:
    """A peer as a system of the benchmark: one training loop, the project's crops.

    Args:
        name: of the distribution on PyPI.
        module: that is imported.
        make: the peer, from channels, samples of a crop and number of classes.
    """

    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)  # the published one first

    def __init__(self, name: str, module: str, make: Callable[[int, int, int], Peer]):
        self.name, self.module, self.make = name, module, make

    def problem(self) -> str:
        """Why it cannot run here; empty if it can."""
        if importlib.util.find_spec(self.module):
            return ""
        return f"{self.name} is not installed: pip install --no-deps -r benchmarks/quality/peers.txt"

    def _peer(self, corpus: Corpus, device: str) -> Peer:
        form = corpus.options
        peer = self.make(form["channels"], form["num_samples"], len(corpus.classes))
        peer.net.to(device)
        return peer

    def train(self, corpus: Corpus, seconds: float, seed: int, rate: float | None, device: str, folder: Path) -> dict:
        """Trains until the time is spent, writes the averaged weights, and returns what was spent and the loss."""
        torch.manual_seed(seed)
        peer = self._peer(corpus, device)
        parameters = [p for p in peer.net.parameters() if p.requires_grad]
        averaged = [p.detach().clone() for p in parameters]
        full, spent = rate or self.learning_rates[0], 0.0
        optimizer = torch.optim.AdamW(parameters, lr=full, **peer.optimizer)
        batches, steps, start = _batches(corpus, seed), 0, now(device)
        while spent < seconds:
            for group in optimizer.param_groups:
                group["lr"] = full * peer.factor(spent / seconds)
            batch = next(batches)
            label = torch.zeros(len(batch), dtype=torch.int64) if batch.label is None else batch.label.clamp(min=0)
            optimizer.zero_grad(set_to_none=True)
            peer.loss(batch.audio.to(device), label.to(device)).backward()
            if peer.clip_norm:
                nn.utils.clip_grad_norm_(parameters, peer.clip_norm)
            optimizer.step()
            steps += 1
            decay = min(peer.ema_max, 1 - (1 + steps) ** -peer.ema_power)
            torch._foreach_lerp_(averaged, [p.detach() for p in parameters], 1 - decay)
            spent = now(device) - start
        with torch.no_grad():
            for parameter, average in zip(parameters, averaged, strict=True):
                parameter.copy_(average)
        torch.save(peer.net.state_dict(), folder / "weights.pt")
        return {
            "seconds": spent, "steps": steps, "seconds_per_step": spent / steps, "learning_rate": full,
            "parameters": sum(p.numel() for p in parameters), "held_out_loss": self._held_out(peer, corpus, device),
        }  # fmt: skip

    @torch.no_grad()
    def _held_out(self, peer: Peer, corpus: Corpus, device: str) -> float:
        """Its own loss of the averaged weights on held-out crops, with the same t and noise each time."""
        audio, labels = corpus.crops("val", HELD_OUT)
        index = _index(corpus, labels)
        peer.net.eval()
        torch.manual_seed(0)
        losses = []
        for _ in range(4):  # draws of t and noise
            for i in range(0, len(audio), BATCH):
                part = slice(i, i + BATCH)
                losses.append(peer.loss(audio[part].to(device), index[part].to(device)) * len(audio[part]))
        return float(torch.stack(losses).sum() / (4 * len(audio)))

    @torch.no_grad()
    def generate(self, corpus: Corpus, labels: list[str], calls: int, seed: int, device: str, folder: Path) -> Tensor:
        """Generates a clip for each label from the averaged weights."""
        peer, form = self._peer(corpus, device), corpus.options
        peer.net.load_state_dict(torch.load(folder / "weights.pt", map_location=device, weights_only=True))
        peer.net.eval()
        generator = torch.Generator().manual_seed(seed)
        index, parts = _index(corpus, labels), []
        for i in range(0, len(labels), BATCH):
            part = index[i : i + BATCH]
            noise = torch.randn(len(part), form["channels"], form["num_samples"], generator=generator)
            parts.append(peer.sample(noise.to(device), part.to(device), calls).cpu())
        return torch.cat(parts)


def _index(corpus: Corpus, labels: list[str]) -> Tensor:
    return torch.tensor([corpus.classes.index(label) if corpus.classes else 0 for label in labels])


def _batches(corpus: Corpus, seed: int) -> Iterator[AudioBatch]:
    """The batches that this project's training gets for the same seed."""
    form = corpus.options
    data = AudioDataModule(
        train=str(corpus.shards),
        val=None,
        crop=CropFormat(form["sample_rate"], form["channels"], form["num_samples"]),
        batch_size=form["batch_size"],
        max_steps=10**9,
        order=StreamOrder(seed, crops_per_clip=form["crops_per_clip"]),
        reading=Reading(corpus.classes),
        num_workers=0,
    )
    data.trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    data.prepare_data()
    data.setup("fit")
    yield from data.train_dataloader()


PEERS = {
    "audio-diffusion-pytorch": PeerSystem("audio-diffusion-pytorch", "audio_diffusion_pytorch", AudioDiffusionPytorch),
    "diffusers": PeerSystem("diffusers", "diffusers", Diffusers),
}
