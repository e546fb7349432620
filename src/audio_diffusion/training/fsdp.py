"""FSDP: shards the network's weights, EMA and optimizer state over the devices of a node."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from audio_diffusion.checkpoints import sharded


def shard(net: nn.Module, mesh: DeviceMesh, dtype: torch.dtype = torch.float32) -> None:
    """Shards a network in place, block by block: the children of its ModuleLists, then the rest.

    Args:
        net: any network.
        mesh: (nodes, devices): weights are replicated over nodes, and sharded over the devices of each.
        dtype: dtype of the gathered weights in computation; stored weights and the sums of gradients are float32.
    """
    # the caller casts the network's inputs, because times must stay float32
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for blocks in [m for m in net.modules() if isinstance(m, nn.ModuleList)]:
        for block in blocks:
            if not isinstance(block, nn.ModuleList):
                fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(net, mesh=mesh, mp_policy=policy, reshard_after_forward=True)  # even if no backward pass follows


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, with checkpoints that any number of ranks, sharded or not, can resume from.

    Lightning's own loading fails for parameters with fewer rows than ranks, and broadcasts each tensor; here every rank
    reads its part. Optimizer state is stored by parameter number, as an unsharded optimizer stores it.

    Args:
        sharded_checkpoints: whether every rank writes its own shards into a folder. If False, rank 0 writes one file.
    """

    def __init__(self, sharded_checkpoints: bool = False):
        super().__init__(save_distributed_checkpoint=sharded_checkpoints)
        self.sharded_checkpoints = sharded_checkpoints
        self._writers: Any = None  # gloo process group: checkpoints are written while training uses its own group

    def setup_environment(self) -> None:
        """Sets up the process groups, and the mesh if there is a module: when the ranks agree on a checkpoint to resume
        from, there is none yet."""
        if self.lightning_module is None:
            assert self.accelerator is not None
            self.accelerator.setup_device(self.root_device)
            self._setup_distributed()
        else:
            super().setup_environment()
        if self.sharded_checkpoints and self._writers is None:
            self._writers = dist.new_group(backend="gloo")

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Returns all weights: gathered on the CPU of rank 0, or every rank's shards. All ranks must call it."""
        assert self.lightning_module is not None
        return self._gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Returns the optimizer's state, gathered in the same way as the weights."""
        return self._gathered(optimizer.state_dict())

    def _gathered(self, state: dict[str, Any]) -> dict[str, Any]:
        """Gathers each sharded tensor of a state, one at a time; ranks other than 0 get None in its place."""
        if self.sharded_checkpoints:
            return dict(state)

        def gathered(value: Any) -> Any:
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if isinstance(value, DTensor) and not self.is_global_zero:
                return None
            return whole.cpu() if isinstance(whole, Tensor) else whole

        return tree_map(gathered, state)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if self.sharded_checkpoints or self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=self._writers)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = True) -> dict[str, Any]:
        """Loads this rank's part of weights and optimizer state, and returns the rest of the checkpoint.

        Only tensors and plain data are loaded.
        """
        path = Path(self.broadcast(checkpoint_path))
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        parameters = [[p for group in o.param_groups for p in group["params"]] for o in self.optimizers]

        # a parameter's optimizer state is sharded as the parameter is
        def like(name: str) -> Tensor | None:
            kind, rest = name.split(".", 1)
            if kind == "state_dict":
                return own.get(rest)
            optimizer, i, _ = rest.split(".", 2)
            return parameters[int(optimizer)][int(i)] if parameters else None

        if path.is_dir():
            content = sharded.read(path, like, dist.group.WORLD)
        else:
            content = torch.load(path, mmap=True, map_location="cpu", weights_only=True)
        _refuse_other_sizes(content["state_dict"], own)
        state = {name: _part(value, own.get(name)) for name, value in content.pop("state_dict").items()}
        self.lightning_module.load_state_dict(state)
        for optimizer, mine, saved in zip(self.optimizers, parameters, content.pop("optimizer_states"), strict=False):
            moments = {
                i: {name: _part(value, mine[i]) for name, value in values.items()}
                for i, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": moments})
        return content


def _refuse_other_sizes(state: dict[str, Any], own: dict[str, Any]) -> None:
    """Checks that weights have the network's sizes, because a sharded network cannot load others.

    Raises:
        ValueError: if not; the message names one of them.
    """
    pairs = {name: (value, own.get(name)) for name, value in state.items()}
    other = {
        name: (list(value.shape), list(mine.shape))
        for name, (value, mine) in pairs.items()
        if isinstance(value, Tensor) and isinstance(mine, Tensor) and value.shape != mine.shape
    }
    if other:
        name, (saved, here) = next(iter(other.items()))
        raise ValueError(
            f"ckpt: {len(other)} weights of the checkpoint have other sizes than the network, such as {name}: {saved}, "
            f"and {here} here. If an older version saved it, resume it without FSDP: trainer=auto or trainer=ddp"
        )


def _part(whole: Any, like: Any) -> Any:
    """Returns this rank's part of a tensor, sharded as ``like`` is; other values and sharded tensors are unchanged."""
    if isinstance(whole, DTensor) or not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
