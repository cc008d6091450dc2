"""Rounding in a traced program as pairs of ``QuantizeLinear`` and ``DequantizeLinear`` of ONNX.

A traced quantized model rounds with one op, ``qlr::fake_quantize``. Here each of them becomes

.. math::
    c = \\mathrm{clamp}(\\lfloor x / s + z \\rceil, 0, 2^b - 1), \\quad
    q = \\mathrm{QuantizeLinear}(S (c - Z), S, Z), \\quad
    \\hat x = \\mathrm{DequantizeLinear}(q, S, Z).

ONNX rounds before it adds the zero point, which gives other codes at ties and has no truncation.
So the codes are made by the definition of this package, and the pair only states them: :math:`q =
c`, bit for bit. A zero point :math:`Z` that is no level (BT, BT*, 1 bit) is folded: the pair has 0
in its place, and :math:`S Z` is subtracted.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from torch_geometric_qlr.io.shared_terms import functional_module, is_random
from torch_geometric_qlr.ops.groups import QParams
from torch_geometric_qlr.ops.reference import affine_params, quantize, truncation_step

__all__ = ["OPSET", "SMALL_CODES", "with_qdq"]

#: The first with 4-bit integers.
OPSET = 21

#: Buffers whose codes fit 4 bits have this in their name.
SMALL_CODES = "codes_uint4"

_UINT8, _UINT4 = 2, 21  # of onnx.TensorProto


def with_qdq(program: torch.export.ExportedProgram) -> fx.GraphModule:
    r"""A program with pairs for its rounding, to be traced again by :func:`torch.onnx.export`.

    What does not depend on an input is computed: scales, zero points, and the codes of weights.

    Args:
        program (torch.export.ExportedProgram): A traced quantized model.
    """
    module = functional_module(program)
    constants = _Constants(module)
    for node in list(module.graph.nodes):
        if node.target is torch.ops.qlr.fake_quantize.default:
            _replace(node, constants)
    constants.put()
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


class _Constants:
    """Nodes whose value is known before the inputs are, and buffers for those that are read."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.values = module, dict[fx.Node, Any]()
        with torch.no_grad():
            for node in module.graph.nodes:
                self._compute(node)

    def _compute(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            self.values[node] = operator.attrgetter(str(node.target))(self.module)
        elif node.op == "call_function" and all(n in self.values for n in node.all_input_nodes):
            if not is_random(node.target) and node.users:
                args, kwargs = fx.map_arg((node.args, node.kwargs), self.values.__getitem__)
                self.values[node] = node.target(*args, **kwargs)  # type: ignore[operator]

    def of(self, arg: Any) -> Any:
        """The value of an argument, or :obj:`None`."""
        return self.values.get(arg) if isinstance(arg, fx.Node) else arg

    def buffer(self, value: Tensor, name: str) -> fx.Node:
        """A node that reads a value."""
        taken, count = name, 0
        while hasattr(self.module, taken):
            count += 1
            taken = f"{name}_{count}"
        self.module.register_buffer(taken, value.detach().clone())
        return self.module.graph.get_attr(taken)

    def put(self) -> None:
        """Constants in the place of what computes them, where something else reads it."""
        for node, value in self.values.items():
            read = any(user not in self.values for user in node.users)
            if node.op == "call_function" and read and isinstance(value, Tensor):
                with self.module.graph.inserting_before(node):
                    node.replace_all_uses_with(self.buffer(value, "constant"))


def _replace(node: fx.Node, constants: _Constants) -> None:
    """A pair in the place of an op of which only the first result is read."""
    given: Any = (node.args, node.kwargs)
    x, scale, zero_point, bits, truncate, skew = _arguments(*given[0], **given[1])
    known = [constants.of(arg) for arg in (scale, zero_point, skew)]
    fractional = truncate or bits == 1
    if known[0] is not None and known[1] is not None:
        read_back = affine_params(known[0], known[1], bits, truncate)
        fractional = bool((read_back[1] != read_back[1].round()).any())
    value = constants.of(x)
    graph = node.graph
    with graph.inserting_before(node):
        if value is not None and known[0] is not None:
            how = QParams(known[0], known[1], bits, truncate, known[2])
            name = SMALL_CODES if bits <= 4 else "codes_uint8"
            codes = constants.buffer(quantize(value, how), name)
            stated = (codes, scale, zero_point, bits, truncate, fractional)
            new = graph.call_function(_constant_values, stated)
        else:
            rounded = (x, scale, zero_point, bits, truncate, skew, fractional)
            new = graph.call_function(_rounded_values, rounded)
    constants.values.pop(node, None)
    for user in list(node.users):
        if user.target is operator.getitem and user.args[1] == 0:
            constants.values.pop(user, None)
            user.replace_all_uses_with(new)
            graph.erase_node(user)


def _arguments(
    x: Any, scale: Any, zero_point: Any, bits: int, truncate: bool = False, skew: Any = None
) -> tuple[Any, ...]:
    return x, scale, zero_point, bits, truncate, skew


# Traced again into ONNX ###########################################################################


def _rounded_values(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    truncate: bool,
    skew: Tensor | None,
    fractional: bool,
) -> Tensor:
    top = 2**bits - 1
    codes = torch.round(x / scale + zero_point)
    if truncate:
        codes = codes.clamp(0, 255)
        codes = codes if skew is None else codes + skew
        codes = torch.round(codes / torch.full((), truncation_step(bits)))
    codes = codes.clamp(0, top)
    scale, zero_point = affine_params(scale, zero_point, bits, truncate)
    level = torch.zeros_like(zero_point) if fractional else zero_point
    pair = _Pair(scale, level, bits)
    value = pair.dequantized(pair.quantized((codes - level) * scale))
    return value - scale * zero_point if fractional else value


def _constant_values(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    truncate: bool,
    fractional: bool,
) -> Tensor:
    scale, zero_point = affine_params(scale, zero_point, bits, truncate)
    level = torch.zeros_like(zero_point) if fractional else zero_point
    value = _Pair(scale, level, bits).dequantized(codes)
    return value - scale * zero_point if fractional else value


class _Pair:
    """``QuantizeLinear`` and ``DequantizeLinear`` with one scale and zero point."""

    def __init__(self, scale: Tensor, level: Tensor, bits: int) -> None:
        # A scale per row is [N, 1], per column [1, F]. Sizes that may change are not compared.
        self.attrs: dict[str, Any] = {}
        if scale.dim() == 2:
            self.attrs["axis"] = 1 if isinstance(scale.size(0), int) and scale.size(0) == 1 else 0
            scale, level = scale.reshape(-1), level.reshape(-1)
        self.scale, self.level = scale, _integers(level, _UINT4 if bits <= 4 else _UINT8)

    def quantized(self, x: Tensor) -> Tensor:
        return _symbolic("QuantizeLinear", (x, self.scale, self.level), self.attrs, torch.uint8, x)

    def dequantized(self, codes: Tensor) -> Tensor:
        given = (codes, self.scale, self.level)
        return _symbolic("DequantizeLinear", given, self.attrs, torch.float32, codes)


def _integers(level: Tensor, kind: int) -> Tensor:
    """Zero points in the type of their codes."""
    by_row = level.dim() == 1 and isinstance(level.size(0), torch.SymInt)
    if by_row and kind == _UINT4:  # to which not every onnxruntime casts
        one = torch.ones(())
        return _symbolic("QuantizeLinear", (level, one), {"output_dtype": kind}, torch.uint8, level)
    return _symbolic("Cast", (level,), {"to": kind}, torch.uint8, level)


def _symbolic(
    op: str, given: tuple[Tensor, ...], attrs: dict[str, Any], dtype: torch.dtype, like: Tensor
) -> Tensor:
    symbolic: Callable[..., Tensor] = torch.onnx.ops.symbolic
    return symbolic(op, given, attrs, dtype=dtype, shape=like.shape, version=OPSET)
