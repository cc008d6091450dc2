"""What quantizers rely on of torch's own machinery, each part by its name, and what they do then:
recomputation, torch.func, tensors without values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import GroupAddRev

from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.quantizers import LearnedRangeQuant, RangeState, fake_quantize
from torch_geometric_qlr.quantizers.torch_state import (
    follows_tangents,
    is_abstract,
    is_recomputing,
    is_transformed,
    may_be_recomputed,
    outside_of_transforms,
    runs_plainly,
    unwrapped,
)

KINDS = [
    ("tensor", "running", 1),
    ("feature", "running", 6),
    ("node", "current", 1),
    ("channel", "current", 8),
]
every_kind = pytest.mark.parametrize(("granularity", "statistics", "groups"), KINDS)


def make(granularity: str, statistics: str, groups: int, **fields: Any) -> LearnedRangeQuant:
    fields = {"bits": 4, "granularity": granularity, "statistics": statistics, **fields}
    return LearnedRangeQuant(QuantizerConfig(**fields), groups)


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# The parts of torch ###############################################################################


def test_is_recomputing_by_the_id_of_the_graph_task() -> None:
    seen = []
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda g: seen.append(is_recomputing()))
    assert torch._C._current_graph_task_id() == -1 and not is_recomputing()
    x.sum().backward()
    assert seen == [True] and not is_recomputing()


def test_may_be_recomputed_by_hooks_on_what_is_saved() -> None:
    found = []

    def look(x: Tensor) -> Tensor:
        found.append(may_be_recomputed())
        return x * 2

    x = torch.ones(2, requires_grad=True)
    for how in (plain, modern, reentrant):
        how(look, x)
    assert found == [False, True, True] and not may_be_recomputed()


def test_is_transformed_and_unwrapped() -> None:
    found = []

    def look(x: Tensor) -> Tensor:
        found.append((is_transformed(), unwrapped(x), follows_tangents()))
        return x.sum()

    x = torch.ones(2, 3)
    grad(look)(x)
    jvp(look, (x,), (x,))
    vmap(look)(x)
    vmap(grad(look))(x)
    assert [f[0] for f in found] == [True] * 4 and not is_transformed()
    assert found[0][1] is not None and found[0][1].data_ptr() == x.data_ptr()
    assert found[1][1] is not None and found[2][1] is found[3][1] is None
    assert [f[2] for f in found] == [False, True, False, False]
    assert unwrapped(x) is x


def test_outside_of_transforms_changes_are_for_good() -> None:
    kept = torch.zeros(())

    def change(x: Tensor) -> Tensor:
        inner = unwrapped(x)
        assert inner is not None
        with outside_of_transforms():
            kept.copy_(inner.max())
        return x.sum()

    grad(change)(torch.tensor([1.0, 5.0]))
    assert kept == 5


def test_runs_plainly_without_transform_forward_mode_or_compiler() -> None:
    seen = []

    def ask(x: Tensor) -> Tensor:
        seen.append(runs_plainly())
        return x * (2.0 if runs_plainly() else 3.0)

    x = torch.ones(2)
    ask(x.clone().requires_grad_()).sum().backward()
    for transform in (grad(lambda x: ask(x).sum()), vmap(ask), lambda x: jvp(ask, (x,), (x,))):
        transform(x)
    assert seen == [True, False, False, False] and runs_plainly()
    assert torch.compile(lambda x: ask(x), backend="eager")(x).equal(3.0 * x)


def test_is_abstract() -> None:
    with FakeTensorMode():
        fake = torch.empty(3)
    assert is_abstract(fake) and is_abstract(torch.empty(3, device="meta"))
    assert is_abstract(nn.Parameter(fake))
    assert not is_abstract(torch.empty(3)) and not is_abstract(nn.Parameter(torch.empty(3)))


# Recomputation ####################################################################################


class Shared(nn.Module):
    """One quantizer that is called on several tensors in one forward."""

    def __init__(self, q: LearnedRangeQuant, recompute: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.recompute = q, recompute
        self.lins = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for lin in self.lins:
            x = self.recompute(lambda h, lin=lin: lin(self.q(h)[0]).relu() * 2, x)
        return x


def plain(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return f(x)


def nested(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    def twice(h: Tensor) -> Tensor:
        return checkpoint(f, h, use_reentrant=False)

    return checkpoint(twice, x, use_reentrant=False)


def reentrant(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return checkpoint(f, x, use_reentrant=True)


def modern(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return checkpoint(f, x, use_reentrant=False)


def numbers(model: nn.Module) -> dict[str, Tensor]:
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return grads | dict(model.named_buffers())


@every_kind
@pytest.mark.parametrize("recompute", [reentrant, modern, nested])
@pytest.mark.parametrize("truncation", [None, "bt*"])
def test_recomputation_changes_nothing(
    recompute: Any, truncation: str | None, granularity: str, statistics: str, groups: int
) -> None:
    found = []
    for how in (plain, recompute):
        q = make(granularity, statistics, groups, truncation=truncation)
        model = Shared(q, how)
        for step in range(3):
            model.zero_grad()
            x = ((step + 1) * data(8, 6, seed=step)).requires_grad_()
            model(x).square().mean().backward()
        found.append(numbers(model) | {"x": x.grad})
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-5, atol=1e-6, msg=key)


def test_two_losses_of_two_forwards() -> None:
    found = []
    for how in (plain, modern):
        model = Shared(make("tensor", "running", 1), how)
        losses = [model((s + 1) * data(8, 6, seed=s)).square().mean() for s in range(2)]
        losses[0].backward()
        third = model(5 * data(8, 6, seed=7)).square().mean()
        (losses[1] + third).backward()
        found.append(numbers(model))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-5, atol=1e-6, msg=key)


def test_a_batch_that_is_the_same_at_every_step() -> None:
    # The latest of equal batches counts: its range has moved on from that of the step before.
    found = []
    for how in (plain, modern):
        q, x = make("tensor", "running", 1, momentum=0.3), data(8, 6)
        q.train()(10 * x)
        for _ in range(3):
            q.gamma.grad = None
            y: Tensor = how(lambda h, q=q: q(h)[0] * 2, x)
            y.square().mean().backward()
        found.append((q.gamma.grad, q.hi))
    torch.testing.assert_close(found[1], found[0])


def test_layers_that_invert_themselves() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.lin = make("tensor", "running", 1, bits=8), nn.Linear(3, 3)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            value: Tensor = self.lin(self.q(x)[0])
            return value

    torch.manual_seed(0)
    model, found = GroupAddRev(Block(), num_groups=2), []
    for disable in (True, False):
        twin = copy.deepcopy(model)
        twin.disable = disable
        for step in range(2):
            x = ((step + 1) * data(8, 6, seed=step)).requires_grad_()
            twin(1 * x, torch.empty(2, 0, dtype=torch.long)).square().mean().backward()
        found.append(numbers(twin))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_what_is_remembered_is_bounded_and_not_copied() -> None:
    q = make("tensor", "running", 1)
    for _ in range(100):
        q(data(4, 6))
    assert not q._recent._entries  # nothing can compute these again
    with torch.no_grad():
        for _ in range(100):
            q(data(4, 6))
    assert len(q._recent._entries) == 32
    assert not copy.deepcopy(q)._recent._entries


# torch.func #######################################################################################


def calibrated(*kind: Any, **fields: Any) -> tuple[LearnedRangeQuant, Tensor]:
    q, x = make(*kind, **fields), data(8, 6)
    q(x)
    q.gamma.data.mul_(0.7)  # some values are clipped
    return q.eval(), x


@every_kind
@pytest.mark.parametrize("truncation", [None, "bt*"])
def test_gradients_and_tangents(
    granularity: str, statistics: str, groups: int, truncation: str | None
) -> None:
    q, x = calibrated(granularity, statistics, groups, truncation=truncation)
    upstream, leaf = data(8, 6, seed=1), x.clone().requires_grad_()
    (q(leaf)[0] * upstream).sum().backward()
    assert leaf.grad is not None and q.gamma.grad is not None
    gamma = {"gamma": q.gamma.detach()}

    def value(gamma: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = functional_call(q, gamma, (x,))[0]
        return out

    def loss(gamma: dict[str, Tensor], x: Tensor) -> Tensor:
        return (value(gamma, x) * upstream).sum()

    of_gamma, of_x = grad(loss, argnums=(0, 1))(gamma, x)
    torch.testing.assert_close(of_x, leaf.grad)
    torch.testing.assert_close(of_gamma["gamma"], q.gamma.grad)
    t, s = data(8, 6, seed=2), data(*q.gamma.shape, seed=3)
    tangent = jvp(value, (gamma, x), ({"gamma": s}, t))[1]
    expected = (leaf.grad * t).sum() + (q.gamma.grad * s).sum()
    torch.testing.assert_close((tangent * upstream).sum(), expected, rtol=1e-4, atol=1e-4)
    reverse, forward = (j(value)(gamma, x)["gamma"] for j in (jacrev, jacfwd))
    torch.testing.assert_close(reverse, forward, rtol=1e-4, atol=1e-5)


@every_kind
@pytest.mark.parametrize("bits", [1, 4])
def test_vmap_equals_a_loop(granularity: str, statistics: str, groups: int, bits: int) -> None:
    q, x = calibrated(granularity, statistics, groups, bits=bits)
    batch = torch.stack([x, 0.5 * x, -x])
    expected = torch.stack([q(v)[0] for v in batch])
    torch.testing.assert_close(vmap(lambda v: q(v)[0])(batch), expected, rtol=0, atol=0)
    moved = vmap(lambda v: q(v)[0], in_dims=2)(batch.permute(1, 2, 0))
    torch.testing.assert_close(moved, expected, rtol=0, atol=0)
    nested = vmap(vmap(lambda v: q(v)[0]))(torch.stack([batch, 2 * batch]))
    torch.testing.assert_close(nested[0], expected, rtol=0, atol=0)
    per_sample = vmap(grad(lambda v: q(v)[0].square().sum()))(batch)
    loop = torch.stack([grad(lambda v: q(v)[0].square().sum())(v) for v in batch])
    torch.testing.assert_close(per_sample, loop)


@every_kind
def test_vmap_over_models(granularity: str, statistics: str, groups: int) -> None:
    first, x = calibrated(granularity, statistics, groups, truncation="bt*")
    second = copy.deepcopy(first).train()
    second(3 * x.exp())
    models = [first.eval(), second.eval()]
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    base = copy.deepcopy(first)
    out = vmap(lambda p, b: functional_call(base, (p, b), (x,))[0])(parameters, buffers)
    torch.testing.assert_close(out, torch.stack([m(x)[0] for m in models]))


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_second_derivatives_agree_in_every_mode(axis: int) -> None:
    x, upstream = 3 * data(5, 4), data(5, 4, seed=1)
    shape: tuple[int, ...] = {-1: (), 0: (5, 1), 1: (1, 4)}[axis]
    scale = torch.rand(shape, generator=torch.Generator().manual_seed(2)) + 0.3

    def loss(scale: Tensor) -> Tensor:
        out = fake_quantize(x, scale, torch.full_like(scale, 2.0), 3)
        return (out * upstream).square().sum()

    leaf = scale.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    found = hessian(loss)(scale).reshape(scale.numel(), scale.numel())
    torch.testing.assert_close(found.sum(0), second.reshape(-1))
    torch.testing.assert_close(jacrev(jacrev(loss))(scale).reshape(found.shape), found)


def test_samples_with_a_skewness_of_their_own() -> None:
    x, skew = 60 * data(3, 5, 4), torch.tensor([0.0, 40.0, 90.0])

    def one(x: Tensor, skew: Tensor) -> Tensor:
        return fake_quantize(x, torch.ones(()), torch.zeros(()), 2, truncate=True, skew=skew)

    expected = torch.stack([one(*pair) for pair in zip(x, skew, strict=True)])
    assert torch.equal(vmap(one)(x, skew), expected)


def test_training_under_grad_observes_as_it_does_without() -> None:
    q, x = make("tensor", "running", 1, truncation="bt*"), data(8, 6)
    twin = copy.deepcopy(q)
    for scale in (1, 3):
        leaf = (scale * x).requires_grad_()
        twin.zero_grad()
        twin(leaf)[0].square().sum().backward()
        of_x = grad(lambda v: q(v)[0].square().sum())(scale * x)
        torch.testing.assert_close(of_x, leaf.grad)
        gamma = {"gamma": q.gamma.detach().clone()}
        for key, value in twin.state_dict().items():
            torch.testing.assert_close(q.state_dict()[key], value, msg=key)
    before = q.hi.clone()
    grad(lambda p: functional_call(q, p, (9 * x,))[0].sum())(gamma)
    assert q.hi > before


def test_training_under_vmap_moves_nothing_and_needs_a_range() -> None:
    q, x = make("tensor", "running", 1), data(3, 8, 6)
    q.path = "convs.0.input"
    with pytest.raises(InputError, match=r"convs\.0\.input has no range yet.*vmap"):
        vmap(lambda v: q(v)[0])(x)
    q(x[0])
    before = {k: v.clone() for k, v in q.state_dict().items()}
    out = vmap(lambda v: q(v)[0])(100 * x)
    assert all(torch.equal(v, before[k]) for k, v in q.state_dict().items())
    assert torch.equal(out[1], q.eval()(100 * x[1])[0])


def test_forward_mode_without_func_leaves_no_tangent_in_the_state() -> None:
    q, x = make("tensor", "running", 1), data(8, 6)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        out = torch.autograd.forward_ad.unpack_dual(q(dual)[0])
        assert torch.autograd.forward_ad.unpack_dual(q.hi).tangent is None
    assert out.tangent is not None and set(out.tangent.unique().tolist()) <= {0.0, 1.0}
    assert bool(out.tangent.any())


# Without values ###################################################################################


@every_kind
@pytest.mark.parametrize("train", [True, False])
def test_on_the_meta_device(granularity: str, statistics: str, groups: int, train: bool) -> None:
    source, x = calibrated(granularity, statistics, groups)
    with torch.device("meta"):
        q = make(granularity, statistics, groups).train(train)
    assert q(torch.empty(8, 6, device="meta"))[0].shape == (8, 6)
    assert q.range_state == RangeState.MISSING and "missing" in repr(q)
    filled = copy.deepcopy(q).to_empty(device=x.device)
    filled.load_state_dict(source.state_dict())
    assigned = copy.deepcopy(q)
    assigned.load_state_dict(source.state_dict(), assign=True)
    for twin in (filled, assigned):
        assert isinstance(twin.gamma, nn.Parameter) and twin.range_state == RangeState.FIXED
        for a, b in zip(twin.eval()(x), source(x), strict=True):
            assert torch.equal(a, b)
    fresh = copy.deepcopy(q).to_empty(device=x.device)
    fresh.reset_parameters()
    expected = make(granularity, statistics, groups).train(train)
    assert torch.equal(fresh(x)[0], expected(x)[0])


def test_fake_tensors() -> None:
    with FakeTensorMode():
        q = make("tensor", "running", 1)
        assert q(torch.empty(8, 6))[0].shape == (8, 6)
        assert q.eval()(torch.empty(8, 6))[0].shape == (8, 6)
    assert q.range_state == RangeState.MISSING


@pytest.mark.heavy  # transforms/test_lifecycle.py always compiles a layer before its first batch
@pytest.mark.parametrize("first", ["train", "eval"])
def test_compiled_whole_before_any_data(first: str) -> None:
    q, x = make("tensor", "running", 1).train(first == "train"), data(8, 6)
    twin = copy.deepcopy(q)
    compiled = torch.compile(q, fullgraph=True, backend="aot_eager")
    for scale in (1, 2) if first == "train" else (1,):
        leaf, other = ((scale * x).requires_grad_() for _ in range(2))
        compiled(leaf)[0].square().sum().backward()
        twin(other)[0].square().sum().backward()
        torch.testing.assert_close(leaf.grad, other.grad)
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(q.state_dict()[key], value, msg=key)
