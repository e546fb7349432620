"""FSDP: a network whose weights, EMA and optimizer state lie in shards on the devices of a node."""

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
        dtype: weights are gathered and used in it; they are kept, and gradients are summed, in float32.
    """
    # inputs are cast by who calls the network: times must stay float32
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for blocks in [m for m in net.modules() if isinstance(m, nn.ModuleList)]:
        for block in blocks:
            if not isinstance(block, nn.ModuleList):
                fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(net, mesh=mesh, mp_policy=policy, reshard_after_forward=True)  # also where no backward follows


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, with checkpoints that any number of ranks, sharded or not, goes on from.

    What Lightning loads with goes wrong for parameters with fewer rows than ranks, and broadcasts each tensor; here
    every rank reads its part. Optimizer state is kept by number, as an unsharded optimizer has it.

    Args:
        sharded_checkpoints: every rank writes its own shards into a folder, rather than rank 0 all of it into a file.
    """

    def __init__(self, sharded_checkpoints: bool = False):
        super().__init__(save_distributed_checkpoint=sharded_checkpoints)
        self.sharded_checkpoints = sharded_checkpoints
        self._writers: Any = None  # a process group of the CPU, as checkpoints are written while training uses its own

    def setup_environment(self) -> None:
        """The process groups; once there is a module, as is not yet when ranks agree on a checkpoint, the mesh too."""
        if self.lightning_module is None:
            assert self.accelerator is not None
            self.accelerator.setup_device(self.root_device)
            self._setup_distributed()
        else:
            super().setup_environment()
        if self.sharded_checkpoints and self._writers is None:
            self._writers = dist.new_group(backend="gloo")

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """All weights: whole ones on the CPU of rank 0, or every rank's shards. All ranks must call it."""
        assert self.lightning_module is not None
        return self._gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """All moments, likewise."""
        return self._gathered(optimizer.state_dict())

    def _gathered(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state with each sharded tensor gathered, one at a time; None in its place on ranks other than 0."""
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
        """Loads weights and moments, this rank's part of each, and returns the rest; plain data only."""
        path = Path(self.broadcast(checkpoint_path))
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        parameters = [[p for group in o.param_groups for p in group["params"]] for o in self.optimizers]

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
        state = {name: _part(value, own.get(name)) for name, value in content.pop("state_dict").items()}
        self.lightning_module.load_state_dict(state)
        for optimizer, mine, saved in zip(self.optimizers, parameters, content.pop("optimizer_states"), strict=False):
            moments = {
                i: {name: _part(value, mine[i]) for name, value in values.items()}
                for i, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": moments})
        return content


def _part(whole: Any, like: Any) -> Any:
    """This rank's part of a tensor, sharded as ``like`` is; anything else, and what is sharded already, as it is."""
    if isinstance(whole, DTensor) or not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
