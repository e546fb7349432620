"""DDP finds no unused parameters, since there are none: each has a gradient in every step, whatever is told."""

from functools import cache
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from audio_diffusion.cli import config
from audio_diffusion.cli.config import CONFIG_DIR
from audio_diffusion.diffusion.guidance import drop

SETS = ["", "label", "caption", "embedding", "mel", "seconds", "label,seconds", "label,caption,embedding,mel,seconds"]


def test_no_condition_is_left_out() -> None:
    shipped = {file.stem for file in (CONFIG_DIR / "condition").glob("*.yaml")}
    assert shipped == set(SETS[-1].split(","))


@cache
def configuration(chosen: str) -> dict[str, Any]:
    """Of train.py, with these conditions."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        small = ["model.widths=[8,64]", "model.factors=[4]", "model.num_blocks=1", "audio.num_samples=2048"]
        return config.to_plain(compose("train", overrides=["classes=[a,b]", f"condition=[{chosen}]", *small]))


@pytest.mark.parametrize("chosen", SETS)
@pytest.mark.parametrize("dropped", [0, 1, 2])
def test_every_parameter_has_a_gradient_however_many_samples_are_told_nothing(chosen: str, dropped: int) -> None:
    plain = configuration(chosen)
    net, process = config.build(plain["model"], "model"), config.build(plain["diffusion"], "diffusion")
    cond: dict[str, Tensor] = {
        name: torch.zeros_like(nothing) for name, nothing in net.conditions.given({}, 2, "cpu").items()
    }
    x0 = 0.1 * torch.randn(2, 1, 2048)
    told = drop(cond, torch.arange(2) < dropped)
    process.loss(net, x0, torch.randn_like(x0), torch.tensor([0.1, 0.9]), told).mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
