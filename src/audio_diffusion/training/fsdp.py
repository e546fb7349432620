"""FSDP: a network whose weights, EMA and optimizer state lie in shards on the devices of a node."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map


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

    What it loads with goes wrong for parameters with fewer rows than ranks, and broadcasts each tensor; here every rank
    reads its part of the file. Optimizer state is kept by number, as an unsharded optimizer has it.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)  # data parallel over nodes, sharded within each

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole weights on the CPU of rank 0; all ranks must call it."""
        assert self.lightning_module is not None
        return self._whole(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole moments on the CPU of rank 0; all ranks must call it."""
        return self._whole(optimizer.state_dict())

    def _whole(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state with each sharded tensor gathered, one at a time; None in its place on ranks other than 0."""

        def gathered(value: Any) -> Any:
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if isinstance(value, DTensor) and not self.is_global_zero:
                return None
            return whole.cpu() if isinstance(whole, Tensor) else whole

        return tree_map(gathered, state)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = True) -> dict[str, Any]:
        """Loads weights and moments, this rank's part of each, and returns the rest; plain data only."""
        path = Path(self.broadcast(checkpoint_path))
        content = torch.load(path, mmap=True, map_location="cpu", weights_only=True)
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {name: _part(value, own.get(name)) for name, value in content.pop("state_dict").items()}
        self.lightning_module.load_state_dict(state)
        for optimizer, saved in zip(self.optimizers, content.pop("optimizer_states"), strict=False):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            moments = {
                i: {name: _part(value, parameters[i]) for name, value in values.items()}
                for i, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": moments})
        return content


def _part(whole: Any, like: Any) -> Any:
    """This rank's part of a tensor, sharded as ``like`` is; anything else as it is."""
    if not isinstance(like, DTensor) or not isinstance(whole, Tensor) or whole.shape != like.shape:
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
