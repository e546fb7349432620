"""bf16: what is computed in it, what never is, and that the average still moves."""

from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from audio_diffusion.networks.layers import NullableEmbedding, TimeEmbedding
from audio_diffusion.training.precision import make_precision

BF16 = ["bf16-mixed", "bf16-true"]


@pytest.mark.parametrize("precision", BF16)
def test_weights_averages_and_moments_stay_float32(make_run, precision: str) -> None:
    run = make_run(max_steps=3, precision=precision)
    run.fit()
    assert {p.dtype for p in run.module.parameters()} == {torch.float32}
    assert {v.dtype for s in run.trainer.optimizers[0].state.values() for v in s.values()} == {torch.float32}
    assert run.trainer.precision == precision


@pytest.mark.parametrize("precision", BF16)
def test_an_average_of_long_memory_moves_by_what_the_weights_moved(make_run, precision: str) -> None:
    """At a decay of 0.9999 a bf16 average would stay where it is: its steps are below half of its last digit."""
    run = make_run(max_steps=4, precision=precision, lr=1e-2)
    ema = run.module.ema
    ema.decay, ema.num_updates = 0.9999, 1_000_000
    average = {name: p.detach().double() for name, p in ema.net.named_parameters()}
    update, followed = ema.update, dict(run.module.net.named_parameters())

    def watched(net: nn.Module) -> None:
        for name, p in followed.items():
            average[name] = 0.9999 * average[name] + 0.0001 * p.detach().double()
        update(net)

    before = {name: p.detach().clone() for name, p in ema.net.named_parameters()}
    ema.update = watched
    run.fit()
    moved = {name: p.detach() - before[name] for name, p in ema.net.named_parameters()}
    assert all(change.any() for change in moved.values())
    assert 5e-6 < max(change.abs().max().item() for change in moved.values()) < 1e-4
    for name, p in ema.net.named_parameters():
        torch.testing.assert_close(p.double(), average[name], rtol=0, atol=5e-7)
    first = before["down.0.0.conv1.weight"]
    step = moved["down.0.0.conv1.weight"]
    assert torch.equal((first.bfloat16() + step.bfloat16())[first.abs() > 0.05], first.bfloat16()[first.abs() > 0.05])


def test_the_trained_network_sees_bf16_but_for_times_and_numbers(make_run) -> None:
    run = make_run(max_steps=1, precision="bf16-true")
    seen: dict[str, set[torch.dtype]] = {}

    def watch(name: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda m, x: seen.setdefault(name, set()).add(x[0].dtype))

    for which, net in {"net": run.module.net, "ema": run.module.ema.net}.items():
        for module in net.modules():
            if isinstance(module, nn.Conv1d):
                watch(f"{which} conv", module)
            if isinstance(module, TimeEmbedding):
                watch(f"{which} time", module)
    run.fit()
    assert seen["net conv"] == {torch.bfloat16}
    assert seen["net time"] == {torch.float32}
    run.trainer.validate(run.module, datamodule=run.data, verbose=False)
    assert seen["ema conv"] == seen["ema time"] == {torch.float32}


def test_numbers_keep_their_digits_in_a_bf16_embedding() -> None:
    embed = NullableEmbedding(TimeEmbedding(8), 8).bfloat16()
    near = embed(torch.tensor([0.5, 0.5004]))  # one in bf16
    assert not torch.equal(near[0], near[1])


@pytest.mark.parametrize("precision", BF16)
def test_gradients_of_a_fused_optimizer_are_clipped(make_run, precision: str) -> None:
    """By Lightning's own plugin they cannot be."""
    moved = []
    for clip in (0.0, 1e-4):
        run = make_run(max_steps=1, precision=precision, clip=clip)
        run.module.make_optimizer = partial(torch.optim.SGD, lr=1.0, fused=True)
        run.module.weight_decay = 0.0
        before = torch.cat([p.detach().flatten().clone() for p in run.module.net.parameters()])
        run.fit()
        moved.append((torch.cat([p.detach().flatten() for p in run.module.net.parameters()]) - before).norm().item())
    assert moved[1] == pytest.approx(1e-4, rel=0.02)
    assert moved[0] > 100 * moved[1]


def test_a_compiled_network_is_one_graph_in_bf16_too(make_run) -> None:
    """Its weights are cast anew for every batch, which must not make it compile again."""
    module = make_run().module
    module.compute_dtype = torch.bfloat16
    x, t, label = torch.randn(2, 1, 2048), torch.tensor([0.1, 0.9]), torch.tensor([0, -1])
    expected = module._trained(x, t, {"label": label})
    graphs = CompileCounterWithBackend("aot_eager")
    module.net.compile(backend=graphs)
    for _ in range(2):
        made = module._trained(x, t, {"label": label})
        made.float().square().mean().backward()
        assert torch.equal(made, expected)
    assert graphs.frame_count == 1
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.net.parameters())


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "64-true", "bf16"])
def test_others_are_refused(precision: str) -> None:
    message = rf"trainer\.precision: expected auto, 32-true, bf16-mixed, bf16-true, got '{precision}'"
    with pytest.raises(ValueError, match=message):
        make_precision(precision, "cpu")
