"""Initialises a run from the weights of another model, and reports which weights fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from audio_diffusion.inference.checkpoint_reader import Weights
from audio_diffusion.networks.layers import LabelEmbedding
from audio_diffusion.training.module import DiffusionModule

_NAMED = 6  # number of names that a log line lists
#: weights whose sizes may differ, since conditions depend on the data set; all others must have the same size
_OWN = "conditions."


@dataclass
class Taken:
    """Result of ``take_weights``: names of weights and labels.

    Args:
        taken: weights copied from the other model.
        new: weights that keep their initialisation, because the other model lacks them or has another size.
        left: weights of the other model that this one does not have.
        kept_labels: classes of both models, whose embeddings were copied.
        new_labels: classes of this model only.
    """

    taken: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    kept_labels: list[str] = field(default_factory=list)
    new_labels: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Returns lines for the log."""
        said = []
        if self.new_labels:
            kept = f"; those of {_listed(self.kept_labels)} are taken" if self.kept_labels else ""
            said.append(f"init: new embeddings for the labels {_listed(self.new_labels)}{kept}")
        if self.new:
            said.append(f"init: {len(self.new)} weights are initialised: {_listed(self.new)}")
        if self.left:
            said.append(
                f"init: {len(self.left)} weights are ignored, as this network does not have them: {_listed(self.left)}"
            )
        return said


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def start_from(module: DiffusionModule, other: Weights, classes: Sequence[str]) -> list[str]:
    """Initialises an untrained module and its EMA from the weights of another model.

    Args:
        module: the module, changed in place.
        other: weights of the other model.
        classes: class names of this module, in order.

    Returns:
        Log lines: which weights were taken and which were not.

    Raises:
        ValueError: if the weights do not fit.
    """
    taken = take_weights(module.net, other.state, classes, other.config.get("classes") or [])
    module.ema.net.load_state_dict(module.net.state_dict())
    which = f"{len(taken.taken)} weights from {other.source}, step {other.step}, {other.kind.upper()}"
    return [f"init: {which}", *taken.lines()]


@torch.no_grad()
def take_weights(
    net: nn.Module, state: Mapping[str, Tensor], classes: Sequence[str], classes_before: Sequence[str]
) -> Taken:
    """Copies the weights of another network that fit into a network.

    The embedding of a label is copied to the class of the same name. Weights of conditions may differ in size, and
    weights that the other network lacks keep their initialisation; all others must have the same size.

    Args:
        net: the network, changed in place.
        state: weights of the other network by name.
        classes: classes of the network, in order.
        classes_before: classes of the other network, in order.

    Raises:
        ValueError: if a weight outside the conditions has another size, or fewer than half of the network's numbers
            can be copied.
    """
    own = net.state_dict()
    result = Taken(left=[name for name in state if name not in own])
    labels = [f"{name}.embedding.weight" for name, part in net.named_modules() if isinstance(part, LabelEmbedding)]
    # copy weight by weight, and collect those that do not fit
    wrong = []
    for name, weight in own.items():
        other = state.get(name)
        if name in labels and other is not None and list(classes) != list(classes_before):
            _take_labels(weight, other, classes, classes_before, result)
        elif other is not None and other.shape == weight.shape:
            weight.copy_(other)
            result.taken.append(name)
        elif other is None or name.startswith(_OWN):
            result.new.append(name)
        else:
            wrong.append(f"{name} has {list(other.shape)} there, {list(weight.shape)} here")
    if wrong:
        raise ValueError(
            f"{len(wrong)} weights are of another size: {_listed(wrong)}. Set audio.channels and the "
            "options of model. as that run had them (they are in its config.yaml)"
        )
    size = sum(weight.numel() for weight in own.values())
    fits = sum(own[name].numel() for name in result.taken)
    if 2 * fits < size:
        raise ValueError(
            f"its network has another architecture: it has {fits} of this network's {size} numbers, and lacks "
            f"{_listed(result.new)}"
        )
    return result


def _take_labels(
    weight: Tensor, other: Tensor, classes: Sequence[str], classes_before: Sequence[str], result: Taken
) -> None:
    """Copies rows of a label embedding by the names of the classes; row 0 is "not given"."""
    if other.shape[1:] == weight.shape[1:]:
        weight[0] = other[0]
        for row, label in enumerate(classes):
            if label in classes_before:
                weight[1 + row] = other[1 + list(classes_before).index(label)]
                result.kept_labels.append(label)
    result.new_labels += [label for label in classes if label not in result.kept_labels]
