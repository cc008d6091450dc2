"""Calls every op with arguments that are right, nearly right, and nonsense.

A call must give the right result or raise an error that says what was wrong: one of this package's,
or torch's own for what breaks a schema. What is right is the reference's result. Built with
sanitizers, the kernels are watched while this runs (`test_sanitized.py`).

    python -m tests.helpers.fuzz_ops --seed 0 --seconds 30
"""

from __future__ import annotations

import argparse
import random
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.errors import QLRError
from torch_geometric_qlr.ops import (
    QParams,
    backend_info,
    reference,
    row_layout,
    storage_bits,
    use_backend,
)
from torch_geometric_qlr.ops.schemas import NAMES

Arguments = dict[str, Any]

SIZES = (0, 0, 1, 1, 2, 3, 7, 16, 17, 33, 64, 65, 130, 257)
NUMBERS = (-(2**40), -4096, -1, 0, 1, 3, 5, 8, 9, 1000, 2**31, 2**40)
WORDS = ("", "sum", "mean", "max", "paper", "nonnegative", "\0", "ł")
DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.bool),
    *(torch.uint8, torch.int8, torch.int32, torch.int64),
)
FILLS = (float("nan"), float("inf"), float("-inf"), 0.0, -1.0, 1e-40, 3e38)
#: Float results are compared with the reference's where all floats are of ordinary size.
ORDINARY = 1e-4, 1e4
#: Whose packed results depend on sums that are rounded in another order.
CHAINED = ("packed_propagate", "packed_smp")
EXACT = (
    "quantize_pack",
    "quantize_rows",
    "csr",
    "quantize_edges",
    "pack",
    "unpack",
    "dequantize_packed",
    "index_select",
    "fake_quantize",
    "observed_quantize",
)


class Fuzzer:
    """Draws calls; the same seed draws the same ones."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.rng = torch.Generator().manual_seed(seed)

    def size(self) -> int:
        return self.draw.choice(SIZES)

    def maybe(self, make: Callable[[], Any], share: float = 0.4) -> Any:
        return make() if self.draw.random() < share else None

    def floats(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.rng)

    def codes(self, rows: int, cols: int, bits: int) -> Tensor:
        return torch.randint(2**bits, (rows, cols), generator=self.rng, dtype=torch.uint8)

    def params(self, rows: int, cols: int, bits: int, prefix: str = "") -> Arguments:
        shape = self.draw.choice([(), (1, 1), (rows, 1), (1, cols)])
        scale = torch.rand(shape, generator=self.rng) + 0.05
        zero = torch.rand(shape, generator=self.rng) * (2**bits - 1)
        return {f"{prefix}scale": scale, f"{prefix}zero_point": zero}

    def quantizer(self, rows: int, cols: int) -> Arguments:
        bits = self.draw.randint(1, 8)
        skew = self.maybe(lambda: self.floats() * 40)
        truncate = self.draw.random() < 0.5
        return {**self.params(rows, cols, bits), "bits": bits, "truncate": truncate, "skew": skew}

    def output(self, rows: int, cols: int) -> Arguments:
        quantizer = self.maybe(lambda: self.quantizer(rows, cols), 0.6) or {}
        return {f"out_{name}": value for name, value in quantizer.items()}

    def packed(self, rows: int, cols: int, bits: int) -> Arguments:
        data = reference.pack(self.codes(rows, cols, bits), bits)
        return {"packed": data, "num_cols": cols, "bits": bits, **self.params(rows, cols, bits)}

    def graph(self, targets: int, sources: int) -> Arguments:
        most = self.draw.choice((0, 1, 5, 40)) if sources else 0
        degree = torch.randint(0, most + 1, (targets,), generator=self.rng)
        rowptr = torch.zeros(targets + 1, dtype=self.draw.choice((torch.int32, torch.int64)))
        rowptr[1:] = degree.cumsum(0)
        dtype = self.draw.choice((torch.int32, torch.int64))
        edges = int(rowptr[-1])
        col = torch.randint(max(sources, 1), (edges,), generator=self.rng, dtype=dtype)
        return {"rowptr": rowptr, "col": col}

    def steps(self, count: int) -> Arguments:
        scale = torch.rand(count, generator=self.rng) + 0.05
        zero = torch.rand(count, generator=self.rng) * 3
        skew = self.maybe(lambda: self.floats(count))
        numbers = {"step_scale": scale, "step_zero_point": zero, "step_skew": skew}
        return {**numbers, "step_bits": self.draw.randint(1, 8), "step_truncate": skew is not None}

    def edge_weights(self, edges: int) -> Tensor:
        if self.draw.random() < 0.5:
            return self.floats(edges)
        return torch.randint(-128, 128, (edges,), generator=self.rng, dtype=torch.int8)

    def epilogue(self, edges: int, sources: int, rows: int, cols: int) -> Arguments:
        return {
            "edge_weight": self.maybe(lambda: self.edge_weights(edges)),
            "source_weight": self.maybe(lambda: self.floats(sources)),
            "row_scale": self.maybe(lambda: self.floats(rows)),
            "bias": self.maybe(lambda: self.floats(cols)),
            "addend": self.maybe(lambda: self.floats(rows, cols)),
            "addend_scale": self.draw.choice((1.0, 0.25)),
            "reduce": self.draw.choice(("sum", "mean")),
            "relu": self.draw.random() < 0.5,
        }

    def backward(self, rows: int, cols: int, ranges: bool) -> Arguments:
        x = self.floats(rows, cols)
        x_hat, mask = reference.fake_quantize(x, QParams(torch.tensor(0.3), torch.tensor(2.0), 4))
        given = {"grad": self.floats(rows, cols), "x": x, "x_hat": x_hat, "mask": mask}
        if not ranges:
            return {**given, "axis": self.draw.randint(-1, 1)}
        scale = self.params(rows, cols, 4)["scale"]
        return {**given, "scale": scale, "own_scale": scale * 0.7, "factor": 0.5}

    def observed(self, rows: int, cols: int) -> Arguments:
        axis = self.draw.randint(-1, 1)
        groups = (rows, cols, 1)[axis]
        lo = self.maybe(lambda: -torch.rand(groups, generator=self.rng))
        return {
            "x": self.floats(rows, cols),
            "gamma": torch.rand(self.draw.choice((1, groups)), generator=self.rng),
            "lo": lo,
            "hi": None if lo is None else 1 - lo,
            "axis": axis,
            "bits": self.draw.randint(1, 8),
            "truncate": self.draw.random() < 0.5,
            "aligned": self.draw.random() < 0.5,
            "momentum": self.draw.choice((0.1, 0.9, 1.0)),
            "factor": self.draw.choice((1.0, 0.01)),
        }

    def weight(self, rows: int, cols: int) -> Arguments:
        """The second matrix of a product."""
        bits = self.draw.choice((1, 2, 4, 8))
        weight = {f"weight_{k}": v for k, v in self.packed(rows, cols, bits).items()}
        weight = {"weight": weight.pop("weight_packed"), **weight}
        del weight["weight_num_cols"]
        return weight

    def arguments(self, op: str) -> Arguments:
        """What the op takes."""
        rows, cols, sources = self.size(), self.size(), self.size()
        bits = self.draw.choice((1, 2, 4, 8))
        square = op in CHAINED
        if op in ("quantize_pack", "fake_quantize"):
            return {"x": self.floats(rows, cols), **self.quantizer(rows, cols)}
        if op.endswith("quantize_backward"):
            return self.backward(rows, cols, ranges=op == "observed_quantize_backward")
        if op == "observed_quantize":
            return self.observed(rows, cols)
        if op == "quantize_rows":
            quantizer = self.quantizer(rows, cols)
            own = {name: quantizer[name] for name in ("bits", "truncate", "skew")}
            more = {"multiplier": torch.rand(1, generator=self.rng), "aligned": bits > 2}
            return {"x": self.floats(rows, cols), **own, **more}
        if op == "quantize_linear":
            quantizer = self.quantizer(rows, cols)
            if bits > 2:  # a range of its own for each row
                one = torch.rand(1, generator=self.rng)
                quantizer |= {"scale": one, "zero_point": None}
            bias = self.maybe(lambda: self.floats(sources))
            more = {"aligned": bits > 4, "bias": bias, "relu": bits > 1}
            return {"x": self.floats(rows, cols), **quantizer, **self.weight(sources, cols), **more}
        if op == "csr":
            count = (cols if sources and rows else 0,)
            source = torch.randint(max(sources, 1), count, generator=self.rng)
            target = torch.randint(max(rows, 1), source.shape, generator=self.rng)
            target = target.sort().values if bits > 2 else target
            return {
                "edge_index": torch.stack([source, target]),
                "num_src": sources,
                "num_dst": rows,
            }
        if op == "quantize_edges":
            graph = self.graph(rows, sources)
            weight = {"edge_weight": self.floats(graph["col"].numel()), "bits": max(bits, 2)}
            return {
                **graph,
                **weight,
                "source_weight": self.maybe(lambda: self.floats(sources)),
            }
        if op == "pack":
            return {"codes": self.codes(rows, cols, bits), "bits": bits}
        packed = self.packed(rows if square else sources, cols, bits)
        if op == "unpack":
            return {name: packed[name] for name in ("packed", "num_cols", "bits")}
        if op == "dequantize_packed":
            return packed
        if op == "index_select":
            index = torch.randint(max(sources, 1), (rows if sources else 0,), generator=self.rng)
            return {"packed": packed["packed"], "index": index}
        if op == "packed_linear":
            more = {"bias": self.maybe(lambda: self.floats(rows)), "relu": True}
            output = self.output(sources, rows)
            return {**packed, **self.weight(rows, cols), **more, **output}
        graph = self.graph(rows, rows if square else sources)
        edges = graph["col"].numel()
        if op == "packed_extremum":
            return {**graph, **packed, "largest": self.draw.random() < 0.5}
        if op == "edge_softmax":
            heads = self.draw.choice((1, 2, 3, 4, 8, 9))
            return {
                **graph,
                "x": self.floats(sources, heads),
                "target": self.maybe(lambda: self.floats(rows, heads)),
                "edge": self.maybe(lambda: self.floats(edges, heads)),
                "negative_slope": self.draw.choice((0.2, 1.5, -1.0)),
            }
        if op == "packed_attention":
            heads = self.draw.choice([h for h in (1, 2, 3, 16, 33) if cols % h == 0])
            bias, relu = self.maybe(lambda: self.floats(cols)), self.draw.random() < 0.5
            more = {"alpha": self.floats(edges, heads), "bias": bias, "relu": relu}
            return {**graph, **packed, **more, **self.output(rows, cols)}
        epilogue = self.epilogue(edges, sources, rows, cols)
        if op == "spmm":
            return {**graph, "x": self.floats(sources, cols), **epilogue}
        if op == "packed_spmm":
            return {**graph, **packed, **epilogue, **self.output(rows, cols)}
        if op == "packed_smp":
            weight = {name: epilogue[name] for name in ("edge_weight", "row_scale")}
            return {**graph, "x": self.floats(rows, cols), **self.steps(2), **weight}
        names = ("edge_weight", "row_scale", "addend", "addend_scale")
        kept = {name: epilogue[name] for name in names}
        steps = self.steps(self.draw.randint(0, 3))
        return {**graph, **packed, **steps, **kept, "factor": 0.9, **self.output(rows, cols)}

    def spoil(self, arguments: Arguments) -> None:
        """Makes one argument another."""
        name = self.draw.choice(sorted(arguments))
        value = arguments[name]
        if isinstance(value, Tensor):
            arguments[name] = self.spoilt(value)
        elif isinstance(value, bool):
            arguments[name] = not value
        elif isinstance(value, int):
            arguments[name] = self.draw.choice(NUMBERS)
        elif isinstance(value, float):
            arguments[name] = self.draw.choice(FILLS)
        elif isinstance(value, str):
            arguments[name] = self.draw.choice(WORDS)

    def spoilt(self, x: Tensor) -> Any:
        kind = self.draw.randrange(11)
        if kind == 0:
            return x.to(self.draw.choice(DTYPES))
        if kind == 1:
            return x.to("meta")
        if kind == 2:
            shapes = (x.flatten(), x.unsqueeze(0), x.unsqueeze(-1), x.flatten()[:0], x.sum())
            return self.draw.choice(shapes)
        if kind == 3:
            return torch.cat([x, x]) if x.dim() else x.expand(2)
        if kind == 4:  # the same, with gaps
            return x.repeat_interleave(2, 0)[::2] if x.dim() else x
        if kind == 5:
            return x[..., ::2] if x.dim() else x
        if kind == 6:
            return None
        if kind == 7 and x.is_floating_point():
            return x.clone().requires_grad_()
        if x.dtype == torch.bool or x.is_complex() or not x.numel():
            return x
        spoilt = x.clone()
        flat = spoilt.view(-1)
        at = self.draw.randrange(flat.numel())
        limit = 0 if x.is_floating_point() else min(torch.iinfo(x.dtype).max, 2**31 - 1)
        fill = self.draw.choice(FILLS) if x.is_floating_point() else self.draw.choice((0, 3, limit))
        if not x.is_floating_point() and x.dtype != torch.uint8 and self.draw.random() < 0.5:
            fill = -1 - fill
        flat[at] = fill
        return spoilt


def _ordinary(arguments: Arguments) -> bool:
    low, high = ORDINARY
    for value in arguments.values():
        if isinstance(value, float):
            value = torch.tensor(value)
        if isinstance(value, Tensor) and value.is_floating_point():
            size = value.detach().abs()
            if not bool(((size == 0) | ((size >= low) & (size <= high))).all()):
                return False
    return True


def _divides_by_zero(op: str, arguments: Arguments) -> bool:
    return op == "observed_quantize_backward" and bool((arguments["scale"] == 0).any())


def _call(op: str, arguments: Arguments) -> tuple[Any, Exception | None]:
    """The result, or the error that refuses the call. Any other error is a finding."""
    try:
        return getattr(torch.ops.qlr, op)(**arguments), None
    except (QLRError, TypeError, RuntimeError) as error:
        return None, error


def _compare(op: str, arguments: Arguments, ours: Any, theirs: Any) -> None:
    """Results of a kernel and of the reference."""
    ours, theirs = (r if isinstance(r, tuple) else (r,) for r in (ours, theirs))
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, (a.shape, b.shape, a.dtype, b.dtype)
        if op in CHAINED or a.device.type == "meta":
            continue
        if op in EXACT:
            assert torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7))
        elif a.dtype == torch.uint8:
            _compare_codes(op, arguments, a)
        elif _ordinary(arguments) and not _divides_by_zero(op, arguments):
            assert bool(a.isfinite().all()), "not finite"
            scale = float(b.detach().abs().max()) if b.numel() else 0.0
            assert float((a - b).detach().abs().max() if b.numel() else 0) <= 1e-4 * scale + 1e-2
        elif not arguments.get("relu"):  # which ends a sum of minus infinity, but not one of NaN
            assert not bool((a.isfinite() & ~b.isfinite()).any()), "a NaN or Inf was lost"


def _compare_codes(op: str, arguments: Arguments, ours: Tensor) -> None:
    """A packed result holds the codes of the float one."""
    output = {k: v for k, v in arguments.items() if k.startswith("out_")}
    rest = {k: v for k, v in arguments.items() if k not in output}
    y = getattr(torch.ops.qlr, op)(**rest)
    if not bool(y.isfinite().all()):  # the reference, which takes all outputs, may have answered
        with use_backend("reference"):
            y = getattr(torch.ops.qlr, op)(**rest)
    assert bool(y.isfinite().all()), "a value that is not finite became a code"
    params = (output["out_scale"], output["out_zero_point"], output["out_bits"])
    truncate, skew = output["out_truncate"], output["out_skew"]
    assert torch.equal(ours, reference.quantize_pack(y, QParams(*params, truncate, skew)))
    assert ours.size(1) == row_layout(y.size(1), storage_bits(output["out_bits"])).stride


def check(fuzzer: Fuzzer, op: str, backend: str) -> bool:
    """One call. Whether it was answered."""
    arguments = fuzzer.arguments(op)
    for _ in range(fuzzer.draw.choice((0, 0, 1, 1, 1, 2))):
        fuzzer.spoil(arguments)
    with use_backend(backend):
        ours, error = _call(op, arguments)
        with use_backend("reference"):
            theirs, refusal = _call(op, arguments)
        if error is None and refusal is None:
            _compare(op, arguments, ours, theirs)
    if (error is None) != (refusal is None) and _ordinary(arguments):
        raise AssertionError(f"{backend}: {error!r}; reference: {refusal!r}")
    return error is None


def run(seed: int, seconds: float) -> tuple[int, int]:
    """How many calls were made, and how many of them answered."""
    backends = backend_info()["available"]
    calls = answered = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        fuzzer = Fuzzer(seed * 1_000_003 + calls)
        op = NAMES[calls % len(NAMES)]
        backend = backends[calls // len(NAMES) % len(backends)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fall-backs
            # What a kernel refuses as unfit, the checks have words for.
            warnings.filterwarnings("error", ".*has no kernel for arguments of this form")
            try:
                answered += check(fuzzer, op, backend)
            except Exception as error:
                raise AssertionError(f"{op} on {backend}, seed {seed}, call {calls}") from error
        calls += 1
    return calls, answered


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=30)
    told = parser.parse_args()
    made, good = run(told.seed, told.seconds)
    print(f"{made} calls, {good} answered, the others refused, on", *backend_info()["available"])
