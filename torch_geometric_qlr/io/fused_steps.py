"""What follows a kernel in an exported program, done by the kernel on its way out.

Run by Python, a converted model fuses bias, ReLU and the next quantizer into the kernel before them
(:mod:`~torch_geometric_qlr.codes.steps` says which, and in which order). A traced program has each
as an operation of its own, with a matrix of floats written and read in between.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["fuse_steps"]

aten = torch.ops.aten

#: What hands on the values that it is given.
_SAME = {aten.detach.default, aten.alias.default, aten.clone.default, aten.view.default}

#: The first arguments of an epilogue's output, by their names in the op that quantizes alone.
_OUTPUT = ("scale", "zero_point", "bits", "truncate", "skew")


def fuse_steps(module: fx.GraphModule) -> None:
    r"""Lets kernels do the operations that follow them, where nobody else reads what is between.

    Args:
        module (torch.fx.GraphModule): Of operations that are functions, with the values that they
            were traced with (``meta["val"]``).
    """
    for node in list(module.graph.nodes):
        _skip_way_back(node)
    module.graph.eliminate_dead_code()
    for node in list(module.graph.nodes):
        kernel = _kernel(node)
        if kernel is not None:
            _fuse(node, kernel)
    module.graph.eliminate_dead_code()
    module.recompile()


def _skip_way_back(node: fx.Node) -> None:
    """A view that another view undoes, as of heads, is none."""
    if node.target != aten.view.default:
        return
    source = node.args[0]
    while isinstance(source, fx.Node) and source.target == aten.view.default:
        source = source.args[0]
    if isinstance(source, fx.Node) and _shape(source) == _shape(node):
        node.replace_all_uses_with(source)


def _kernel(node: fx.Node) -> dict[str, Any] | None:
    """The arguments of an op that has an epilogue, by name."""
    op = node.target
    if node.op != "call_function" or not isinstance(op, torch._ops.OpOverload):
        return None
    known = op._schema.arguments
    if op.namespace != "qlr" or not {"bias", "addend", "out_scale"} & {a.name for a in known}:
        return None
    return _by_name(node)


def _by_name(node: fx.Node) -> dict[str, Any]:
    """All arguments of a call of an op, those that were left out as well."""
    op: Any = node.target
    given = dict(zip((a.name for a in op._schema.arguments), node.args, strict=False))
    defaults = {a.name: a.default_value for a in op._schema.arguments if a.has_default_value()}
    return defaults | given | dict(node.kwargs)


def _fuse(node: fx.Node, kernel: dict[str, Any]) -> None:
    last = node
    while kernel.get("out_scale") is None and len(last.users) == 1:
        reader = next(iter(last.users))
        after = _with_step(kernel, reader, last)
        if after is None:
            break
        kernel, last = after, reader
    if last is node:
        return
    with last.graph.inserting_before(last):  # where all that the steps read is there
        op: Any = node.target
        fused = last.graph.call_function(op, tuple(kernel[a.name] for a in op._schema.arguments))
    fused.meta = dict(last.meta)
    last.replace_all_uses_with(fused)


def _with_step(kernel: dict[str, Any], reader: fx.Node, x: fx.Node) -> dict[str, Any] | None:
    """The arguments of a kernel that does what reads its result as well, if it can: column by
    column it adds a matrix, then one number, and clamps at zero."""
    target = reader.target
    if target in _SAME:
        return kernel if _shape(reader) == _shape(x) else None
    if target == torch.ops.qlr.quantize_pack.default:
        return _with_output(kernel, _by_name(reader), x)
    if kernel.get("relu", True) or reader.kwargs:  # without such an argument it does none of these
        return None
    if target == aten.relu.default:
        return kernel | {"relu": True}
    if target != aten.add.Tensor or kernel.get("bias", x) is not None:
        return None
    other = reader.args[1] if reader.args[0] is x else reader.args[0]
    if not isinstance(other, fx.Node) or other is x or not _is_float(other):
        return None
    *_, cols = _shape(x)
    if other.op == "get_attr" and _shape(other) in ((cols,), ("1", cols)):
        return kernel | {"bias": other}
    if kernel.get("addend", x) is None and _shape(other) == _shape(x):
        return kernel | {"addend": other}
    return None


def _with_output(
    kernel: dict[str, Any], quantizer: dict[str, Any], x: fx.Node
) -> dict[str, Any] | None:
    single = all(_numel(quantizer[name]) == 1 for name in ("scale", "zero_point"))
    if "out_scale" not in kernel or quantizer["x"] is not x or not single:
        return None
    return kernel | {f"out_{name}": quantizer[name] for name in _OUTPUT}


def _shape(node: fx.Node) -> tuple[str, ...]:
    """As expressions: to compare numbers that are not known yet would decide them."""
    value = node.meta.get("val")
    return tuple(map(str, value.shape)) if isinstance(value, Tensor) else ()


def _numel(node: Any) -> int:
    return int(node.meta["val"].numel())


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float32
