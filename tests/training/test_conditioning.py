"""What the module tells the network while it trains: which conditions are read, and which are dropped."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audio_diffusion.data.batch import AudioBatch, Crop, collate
from audio_diffusion.diffusion import schedules
from audio_diffusion.diffusion.parameterization import Epsilon
from audio_diffusion.diffusion.process import Cond, Diffusion
from audio_diffusion.networks.conditions.condition import Conditions, Embedding, Label, Number
from audio_diffusion.networks.conditions.text import Text
from audio_diffusion.representations.waveform import Waveform
from audio_diffusion.training.loss import TrainingLoss
from audio_diffusion.training.module import DiffusionModule
from audio_diffusion.training.optim import warmup_cosine

NUM = 4000


class Recorder(nn.Module):
    """A network that keeps the conditions it is given."""

    multiple = 1

    def __init__(self, **conditions: Any) -> None:
        super().__init__()
        self.conditions, self.scale = Conditions(conditions, 8), nn.Parameter(torch.ones(()))
        self.given: list[Cond] = []

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.given.append(cond)
        return x_t * self.scale


def module(net: nn.Module, cond_dropout: float | dict[str, float], seed: int = 0) -> DiffusionModule:
    optimizer = partial(torch.optim.SGD, lr=0.1)
    lr_schedule = partial(warmup_cosine, warmup_steps=0, total_steps=10)
    process = Diffusion(schedules.linear(), Epsilon())
    loss = TrainingLoss(cond_dropout, seed=seed)
    return DiffusionModule(net, process, Waveform(), optimizer, lr_schedule, loss=loss)


def batch(positions: list[int]) -> AudioBatch:
    """Two samples of silence at each position, everything known of them."""
    clips = [Crop(p, 0, "key", 2, 1.0, 2.0, p % 3, (f"clip {p}",)) for p in positions]
    return collate(torch.zeros(len(clips), 1, 2), clips, with_label=True, field_names=("caption",))


def not_given(cond_dropout: float | dict[str, float], positions: list[int], seed: int = 0, **conditions: Any) -> Any:
    """Where each condition was dropped in a training step, bool ``[B]`` by name."""
    seconds = Number(0, 10)
    net = Recorder(**(conditions or {"seconds_start": seconds, "label": Label(3), "seconds_total": seconds}))
    module(net, cond_dropout, seed).training_step(batch(positions), 0)
    return {n: v.isnan() if v.is_floating_point() else v == -1 for n, v in net.given[0].items()}


def test_conditions_are_dropped_independently_each_at_its_rate() -> None:
    rates = {"seconds_start": 0.2, "label": 0.5}
    dropped = not_given(rates, list(range(NUM)))
    start, label = dropped["seconds_start"], dropped["label"]
    assert start.float().mean() == pytest.approx(0.2, abs=0.02)
    assert label.float().mean() == pytest.approx(0.5, abs=0.03)
    assert (start & label).float().mean() == pytest.approx(0.2 * 0.5, abs=0.015)
    assert not dropped["seconds_total"].any()


def test_one_number_drops_all_of_a_sample_together() -> None:
    dropped = not_given(0.3, list(range(NUM)))
    assert dropped["label"].float().mean() == pytest.approx(0.3, abs=0.025)
    for other in dropped.values():
        assert torch.equal(other, dropped["label"])
    assert all(torch.equal(v, dropped[n]) for n, v in not_given({"all": 0.3}, list(range(NUM))).items())


def test_all_comes_on_top_of_each_ones_own() -> None:
    dropped = not_given({"all": 0.25, "label": 0.5}, list(range(NUM)))
    assert dropped["seconds_total"].float().mean() == pytest.approx(0.25, abs=0.025)
    assert dropped["label"].float().mean() == pytest.approx(0.25 + 0.75 * 0.5, abs=0.03)
    assert (dropped["label"] | ~dropped["seconds_total"]).all()


@pytest.mark.parametrize(("rate", "share"), [(0, 0.0), (1, 1.0)])
def test_never_and_always(rate: float, share: float) -> None:
    for dropped in (not_given(rate, list(range(100))), not_given({"label": rate}, list(range(100)))):
        assert dropped["label"].float().mean() == share


def test_a_drop_belongs_to_the_seed_the_position_and_the_name_alone() -> None:
    rates = {"seconds_start": 0.5, "seconds_total": 0.5, "label": 0.5}
    dropped = not_given(rates, list(range(64)))
    torch.manual_seed(99)
    order = torch.randperm(64).tolist()
    again = not_given(rates, order)  # in another order, in other company
    fewer = not_given(rates, order[:5])
    for name, there in dropped.items():
        assert torch.equal(again[name], there[order])
        assert torch.equal(fewer[name], there[order[:5]])
        assert not torch.equal(not_given(rates, list(range(64)), seed=1)[name], there)
    alone = not_given({"label": 0.5}, list(range(64)), label=Label(3))
    assert torch.equal(alone["label"], dropped["label"])
    assert not torch.equal(dropped["seconds_start"], dropped["seconds_total"])


def test_validation_drops_nothing() -> None:
    net = Recorder(label=Label(3))
    subject = module(net, 1.0)
    subject.validation_step(batch([0, 1, 2]), 0)
    assert net.given[0]["label"].tolist() == [0, 1, 2]


def test_the_network_is_told_what_it_asks_for_and_nothing_else() -> None:
    net = Recorder(seconds_total=Number(0, 10))
    module(net, 0.0).training_step(batch([0]), 0)
    assert {name: value.tolist() for name, value in net.given[0].items()} == {"seconds_total": [pytest.approx(0.2)]}


def test_a_condition_that_the_data_does_not_have_is_named_with_what_to_do() -> None:
    net = Recorder(text=Embedding(8, field="text.npy"))
    message = (
        r"condition text: expected the data to have 'text.npy', it has audio, caption, label, seconds_start, "
        r"seconds_total; add it to data.reading.fields, or leave the condition out: model.conditions.text=null"
    )
    with pytest.raises(ValueError, match=message):
        module(net, 0.0).training_step(batch([0]), 0)


def test_a_batch_of_empty_slots_tells_nothing_and_loses_nothing() -> None:
    """As the last one of a rank in validation; its fields are words, whatever they are in other batches."""
    net = Recorder(text=Embedding(8, field="text.npy"), caption=Text("never/loaded", 8), seconds_start=Number(0, 1))
    empty = collate(torch.zeros(2, 1, 2), [Crop(0), Crop(1)], with_label=True, field_names=("text.npy", "caption"))
    subject = module(net, 0.5)
    assert subject.training_step(empty, 0)["loss"] == 0
    assert subject.validation_step(empty, 0)["raw"] == 0
    assert len(net.given) == 2  # the averaged copy keeps its own
    assert all(len(value) == 2 and value.isnan().all() for cond in net.given for value in cond.values())


@pytest.mark.parametrize(
    ("cond_dropout", "message"),
    [
        (1.5, "cond_dropout: expected 0 to 1, got 1.5 for all"),
        ({"label": -0.1}, "cond_dropout: expected 0 to 1, got -0.1 for label"),
        ({"lable": 0.1}, "cond_dropout: expected names among all, label, got 'lable'"),
    ],
)
def test_rates_that_cannot_be_are_refused(cond_dropout: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(Recorder(label=Label(3)), cond_dropout)
