"""What ops refuse, before any back end touches memory: on every back end with the same errors."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import torch

from tests.helpers.kernel_cases import ISAS, REFUSED, problem
from tests.helpers.op_samples import samples
from torch_geometric_qlr.errors import ConfigError, InputError, QLRError
from torch_geometric_qlr.ops import backend_info, reference, row_layout, use_backend
from torch_geometric_qlr.ops.groups import CodeMatrix
from torch_geometric_qlr.ops.schemas import NAMES

qlr = torch.ops.qlr
every_backend = pytest.mark.parametrize("backend", ["reference", *ISAS])
pytestmark = pytest.mark.filterwarnings("ignore:torch.ops.qlr.* has no kernel for")


def named(op: str, which: int = -1) -> dict[str, Any]:
    """The sample arguments of an op, by name."""
    names = [argument.name for argument in getattr(qlr, op).default._schema.arguments]
    return dict(zip(names, samples()[op][which], strict=False))


def assert_refused(
    op: str, arguments: dict[str, Any], error: type[Exception], words: str = "qlr|bits"
) -> None:
    """By the op with an error of that class, and by its overload in the same words."""
    packet = getattr(qlr, op)
    with pytest.raises(error, match=words) as own:
        packet(**arguments)
    with pytest.raises(REFUSED, match=words) as direct:
        packet.default(**arguments)
    assert str(own.value) == str(direct.value)


@every_backend
@pytest.mark.parametrize("columns", (-1, -4096, 2**40))
@pytest.mark.parametrize("op", [n for n in NAMES if "num_cols" in named(n)])
def test_impossible_widths(backend, op, columns):
    for rows in (0, 12):  # without rows there is memory for any width
        arguments = {**named(op), "num_cols": columns, "packed": torch.zeros(rows, 16).byte()}
        with use_backend(backend):
            assert_refused(op, arguments, QLRError, "num_cols|columns")


@every_backend
@pytest.mark.parametrize("op", ("packed_propagate", "packed_smp"))
def test_steps_have_one_length(backend, op):
    arguments = named(op)
    for name in ("step_scale", "step_zero_point", "step_skew"):
        wrong = {**arguments, name: torch.rand(1000)}
        with use_backend(backend):
            assert_refused(op, wrong, InputError, "vectors of one length")


BROKEN_ROWPTR = {
    "far": lambda r: torch.cat([r[:1], r[1:2] + 100_000_000, r[2:]]),
    "descends": lambda r: torch.cat([r[:1], r[-1:], r[1:-2], r[-1:]]),
    "negative": lambda r: torch.cat([r[:1], r[1:2] - 1000, r[2:]]),
    "begins late": lambda r: torch.cat([r[:1] + 1, r[1:]]),
    "ends early": lambda r: torch.cat([r[:-1], r[-1:] - 1]),
}


@every_backend
@pytest.mark.parametrize("how", BROKEN_ROWPTR)
@pytest.mark.parametrize("op", [n for n in NAMES if "rowptr" in named(n)])
def test_rowptr_ascends_from_zero_to_the_edges(backend, op, how):
    arguments = named(op)
    arguments["rowptr"] = BROKEN_ROWPTR[how](arguments["rowptr"])
    with use_backend(backend):
        assert_refused(op, arguments, InputError, f"{op}: rowptr must ascend")


@every_backend
@pytest.mark.parametrize("axis", ("row", "column"))
def test_rowptr_where_the_reference_answers_for_a_kernel(backend, axis):
    case = problem(0, axis=axis)
    with use_backend(backend), pytest.raises(REFUSED, match="rowptr must ascend"):
        qlr.packed_extremum(case.rowptr + 1, case.col, *case.packed)


@every_backend
@pytest.mark.parametrize("bad", (-1, 12, 2**31 - 1, -(2**31)))
@pytest.mark.parametrize("op", [n for n in NAMES if "rowptr" in named(n)])
def test_sources_are_in_range(backend, op, bad):
    arguments = named(op)
    arguments["col"] = torch.full_like(arguments["col"], bad)
    with use_backend(backend):
        assert_refused(op, arguments, InputError, f"{op}: an index is out of range")


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "float index": ("index_select", {"index": torch.tensor([1.0])}, "index is torch.float32"),
    "mask as index": ("index_select", {"index": torch.ones(12).bool()}, "index is torch.bool"),
    "float rows": ("index_select", {"packed": torch.ones(12, 4)}, "packed is torch.float32"),
    "float col": ("packed_spmm", {"col": torch.zeros(5)}, "col is torch.float32"),
    "bool rowptr": ("packed_spmm", {"rowptr": torch.zeros(10).bool()}, "rowptr is torch.bool"),
    "no rowptr": ("spmm", {"rowptr": torch.zeros(0).long()}, "at least one entry"),
    "matrix of col": ("spmm", {"col": torch.zeros(2, 2).long()}, "vectors"),
    "short bias": ("packed_spmm", {"bias": torch.ones(3)}, "bias has 3 elements"),
    "long bias": ("packed_linear", {"bias": torch.ones(3000)}, "bias has 3000 elements"),
    "turned addend": ("packed_spmm", {"addend": torch.ones(40, 9)}, "addend has shape"),
    "complex weights": ("spmm", {"bias": torch.ones(40, dtype=torch.complex64)}, "complex64"),
    "scale of no axis": ("quantize_pack", {"scale": torch.ones(7)}, "scale has shape"),
    "integer scale": ("quantize_pack", {"scale": torch.ones(()).int()}, "floating point"),
    "out zero point": ("packed_spmm", {"out_zero_point": torch.ones(5)}, "out_zero_point has"),
    "no out zero point": ("packed_spmm", {"out_zero_point": None}, "needs an out_zero_point"),
    "narrow weight": ("quantize_linear", {"x": torch.ones(12, 400)}, "weight must be uint8 of"),
    "many ranges": ("quantize_linear", {"scale": torch.ones(3), "zero_point": None}, "3 elements"),
    "many skews": ("quantize_pack", {"skew": torch.ones(2)}, "skew has 2 elements"),
    "integers": ("quantize_pack", {"x": torch.ones(12, 40).int()}, "x is torch.int32"),
    "vector": ("quantize_pack", {"x": torch.ones(40)}, "x must be a matrix"),
    "short rows": ("unpack", {"packed": torch.ones(12, 16).byte()}, "uint8 of shape"),
    "heads": ("packed_attention", {"alpha": torch.ones(5, 3)}, "alpha has shape"),
    "no heads": ("packed_attention", {"alpha": torch.ones(5, 0)}, "alpha has shape"),
    "axis": ("fake_quantize_backward", {"axis": 7}, "axis is -1"),
    "mask": ("fake_quantize_backward", {"mask": torch.ones(12, 40)}, "mask is torch.float32"),
    "odd steps": ("packed_smp", {"step_scale": torch.ones(3), "step_zero_point": torch.ones(3),
                                 "step_skew": None}, "two quantizers per step"),
    "sparse": ("spmm", {"x": torch.ones(12, 40).to_sparse()}, "dense"),
    "meta": ("packed_spmm", {"bias": torch.ones(40, device="meta")}, "one device"),
    "nothing": ("packed_spmm", {"packed": None}, "packed is None"),
}  # fmt: skip


@every_backend
@pytest.mark.parametrize("what", WRONG)
def test_wrong_tensors(backend, what):
    op, change, message = WRONG[what]
    with use_backend(backend):
        assert_refused(op, {**named(op), **change}, InputError, message)


@every_backend
@pytest.mark.parametrize(
    ("op", "change"),
    [
        ("packed_spmm", {"reduce": "max"}),
        ("packed_smp", {"projection": "simplex"}),
        ("packed_smp", {"primal": "\0"}),
        ("packed_spmm", {"bits": 3}),
        ("packed_spmm", {"out_bits": 9}),
        ("quantize_pack", {"bits": 0}),
        ("fake_quantize", {"bits": -1}),
        ("packed_propagate", {"step_bits": 2**40}),
    ],
)
def test_wrong_names_and_widths(backend, op, change):
    with use_backend(backend):
        assert_refused(op, {**named(op), **change}, ConfigError)


def test_shapes_are_checked_without_values():
    arguments = named("packed_spmm", 0)
    meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    assert qlr.packed_spmm(**meta).shape == (9, 40)
    with pytest.raises(InputError, match="uint8 of shape"):
        qlr.packed_spmm(**{**meta, "num_cols": 1000})


@every_backend
@pytest.mark.parametrize("bits", (1, 2, 4))
def test_codes_that_do_not_fit_are_not_packed(backend, bits):
    codes = torch.zeros(3, 70, dtype=torch.uint8)
    codes[2, 69] = 2**bits
    with use_backend(backend):
        words = f"code {2**bits} does not fit"
        assert_refused("pack", {"codes": codes, "bits": bits}, InputError, words)


@every_backend
@pytest.mark.parametrize("half", (torch.float16, torch.bfloat16, torch.float64))
@pytest.mark.parametrize(
    "op", [n for n in NAMES if "scale" in named(n) or "step_scale" in named(n)]
)
def test_ranges_of_any_precision(backend, op, half):
    arguments = named(op)
    for name in arguments:
        if ("scale" in name or "zero_point" in name) and name not in ("addend_scale", "row_scale"):
            arguments[name] = (arguments[name] * 8).round() / 8 + 0.125
    other = {
        name: value.to(half) if isinstance(value, torch.Tensor) and "scale" in name else value
        for name, value in arguments.items()
    }
    with use_backend(backend), torch.no_grad():
        expected, ours = (getattr(qlr, op)(**a) for a in (arguments, other))
    for a, b in zip(
        *((r if isinstance(r, tuple) else (r,)) for r in (expected, ours)), strict=True
    ):
        assert torch.equal(a, b)


@every_backend
@pytest.mark.parametrize("rows, cols, sources", [(0, 0, 0), (3, 0, 4), (0, 5, 4), (3, 5, 0)])
@pytest.mark.parametrize("axis", ("tensor", "row", "column"))
def test_nothing_is_a_size(backend, rows, cols, sources, axis):
    case = problem(0, targets=rows, sources=sources, cols=cols, axis=axis, mean_degree=0.0)
    params = {"out_scale": torch.ones(1, cols), "out_zero_point": torch.zeros(1, cols)}
    output = {**params, "out_bits": 2}
    graph, stride = (case.rowptr, case.col), row_layout(cols, 2).stride
    with use_backend(backend):
        for op, more in (("packed_spmm", ()), ("packed_attention", (torch.ones(0, 1),))):
            y = getattr(qlr, op)(*graph, *case.packed, *more)
            packed = getattr(qlr, op)(*graph, *case.packed, *more, **output)
            assert torch.equal(y, torch.zeros(rows, cols))
            assert torch.equal(packed, torch.zeros(rows, stride, dtype=torch.uint8))
        assert qlr.packed_extremum(*graph, *case.packed).shape == (rows, cols)
        assert torch.equal(qlr.spmm(*graph, case.values), torch.zeros(rows, cols))
        assert qlr.dequantize_packed(*case.packed).shape == (sources, cols)
        linear = (*case.packed[:1], *case.packed[2:])
        y = qlr.packed_linear(*case.packed, *linear)
        assert torch.allclose(y, case.values @ case.values.t(), atol=1e-5)


@every_backend
def test_a_negative_scale_turns_the_order_of_values(backend):
    case = problem(3, mean_degree=8.0)
    arguments = (case.rowptr, case.col, *case.packed[:3], torch.tensor(-0.5), case.zero_point)
    truth = reference.extremum(case.graph, CodeMatrix(case.codes, *arguments[-2:]))
    with use_backend(backend):
        assert torch.equal(qlr.packed_extremum(*arguments), truth)


REFUSE_GRADIENTS = [n for n in NAMES if n not in ("pack", "unpack", "index_select", "csr")]
REFUSE_GRADIENTS = [n for n in REFUSE_GRADIENTS if not n.startswith("fake_quantize")]


@pytest.mark.parametrize("op", REFUSE_GRADIENTS)
def test_ops_without_gradient_refuse_inputs_that_ask_for_one(op):
    arguments = named(op)
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        asking = {**arguments, name: value.clone().requires_grad_()}
        assert_refused(op, asking, InputError, f"torch.ops.qlr.{op} has no gradient")
        with torch.no_grad():
            pair = [getattr(qlr, op)(**given) for given in (asking, arguments)]
            pair = [r if isinstance(r, tuple) else (r,) for r in pair]
            assert all(map(torch.equal, *pair))


def test_functional_gradients_are_refused_too():
    rowptr, col, x = torch.arange(5), torch.arange(4), torch.rand(4, 3)
    with pytest.raises(InputError, match="has no gradient"):
        torch.func.grad(lambda x: qlr.spmm(rowptr, col, x).sum())(x)
    with pytest.raises(InputError, match="has no gradient"):
        torch.func.jvp(lambda x: qlr.spmm(rowptr, col, x), (x,), (x,))


@pytest.mark.skipif(not ISAS, reason="the C++ kernels are not built here")
def test_a_thread_does_not_see_the_back_end_of_another():
    seen = []
    with use_backend("portable"):
        thread = threading.Thread(target=lambda: seen.append(backend_info()["selected"]))
        thread.start()
        thread.join()
        assert backend_info()["selected"] == "portable"
    assert seen == [backend_info()["selected"]]


@pytest.mark.skipif(not ISAS, reason="the C++ kernels are not built here")
def test_a_task_does_not_see_the_back_end_of_another():
    async def compute(name: str) -> set[str]:
        seen = set()
        with use_backend(name):
            for _ in range(5):
                seen.add(backend_info()["selected"])
                await asyncio.sleep(0)
        return seen

    async def both() -> list[set[str]]:
        return await asyncio.gather(compute("reference"), compute("portable"))

    assert asyncio.run(both()) == [{"reference"}, {"portable"}]
