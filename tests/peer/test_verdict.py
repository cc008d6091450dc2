"""Failures are told apart: those that any other arithmetic has, and those that are ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv

from tests.peer.treatment import VARIANTS, Comparison, Variant, Watch, watching
from tests.peer.verdict import verdict

HERE = Path(__file__).resolve().parent
X, EDGES = torch.rand(4, 8), torch.tensor([[0, 1, 2], [1, 2, 3]])


def judged(
    code: object, variant: Variant, comparison: Comparison | None = None
) -> tuple[str, bool]:
    with pytest.raises(BaseException) as caught:
        code()  # type: ignore[operator]
    watch = Watch(variant, comparison=comparison)
    return tuple(verdict("test_conv", caught, HERE, watch))  # type: ignore[return-value]


def not_close() -> None:
    assert torch.allclose(torch.zeros(2), torch.ones(2))


def wrong_size() -> None:
    assert torch.zeros(2).size() == (3,)


def no_gradient() -> None:
    raise RuntimeError("element 0 of tensors does not require grad")


@pytest.mark.parametrize("distance, outputs, expected", [(0.1, False, True), (0.6, False, False)])
def test_values_of_eight_bits_are_near_the_floats(
    distance: float, outputs: bool, expected: bool
) -> None:
    assert judged(not_close, VARIANTS[1], Comparison(distance, outputs))[1] is expected


@pytest.mark.parametrize("distance, expected", [(0.005, True), (0.1, False)])
def test_two_calls_agree_but_for_a_tie(distance: float, expected: bool) -> None:
    assert judged(not_close, VARIANTS[1], Comparison(distance, True))[1] is expected


def test_shapes_are_never_expected_to_differ() -> None:
    assert judged(wrong_size, VARIANTS[-1]) == (
        "assert: assert torch.zeros(2).size() == (3,)",
        False,
    )


def test_gradients_are_missing_only_where_codes_are_packed() -> None:
    assert judged(no_gradient, VARIANTS[-1]) == ("no gradients of packed codes", True)
    assert judged(no_gradient, VARIANTS[1])[1] is False


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_a_layer_is_treated_at_its_first_call(variant: Variant) -> None:
    conv, before = GCNConv(8, 4), nn.Module.__call__
    with watching(variant) as watch:
        conv(X, EDGES)
    assert nn.Module.__call__ is before
    kind = {None: "GCNConv"}.get(variant.bits, "Packed" if variant.converted else "Quant")
    assert type(conv).__name__.startswith(kind) and watch.treated == (variant.bits is not None)


def test_the_rehearsal_gives_the_ranges_of_every_call() -> None:
    def run() -> None:
        torch.manual_seed(0)
        conv = GCNConv(8, 4)
        conv(X, EDGES), conv(100 * X, EDGES)
        seen.append({n: m.state_dict() for n, m in conv.named_modules() if "_qlr." in n})

    seen: list[dict[str, dict[str, Tensor]]] = []
    with watching(VARIANTS[1]) as watch:
        with watch.rehearsal():
            run()
        run()
    assert len(seen[0]) >= 2
    torch.testing.assert_close(seen[1], seen[0])
