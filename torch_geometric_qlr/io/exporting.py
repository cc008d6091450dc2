"""From a model to a file that other programs run, checked before it is there."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from torch_geometric_qlr.errors import (
    ConfigError,
    ExportError,
    InputError,
    LazyModuleError,
    NothingToQuantizeError,
    UnsupportedLayerError,
)
from torch_geometric_qlr.files.atomic import replace_file
from torch_geometric_qlr.io.answers import Difference, answer, compare, first_line, shapes_of
from torch_geometric_qlr.io.compiled_program import (
    compiled_parts,
    compiled_program,
    saved_program,
    traced,
)
from torch_geometric_qlr.io.example_inputs import GraphInputs, check_plain
from torch_geometric_qlr.io.format import check_module
from torch_geometric_qlr.io.onnx_program import check_onnx, onnx_program
from torch_geometric_qlr.layers.pyg import is_uninitialized_parameter
from torch_geometric_qlr.layers.state import parameter_of, state_of
from torch_geometric_qlr.nn import QuantLayer
from torch_geometric_qlr.nn.copying import copy_of
from torch_geometric_qlr.nn.packed import PackedLayer
from torch_geometric_qlr.ops import backend_info
from torch_geometric_qlr.quantizers import Quantizer

__all__ = ["Exported", "export"]


@dataclasses.dataclass(frozen=True)
class Exported:
    r"""What :func:`export` has written and compared.

    Args:
        path (str): The file.
        kind (str): What it is.
        dynamic (str): Which dimensions may change.
        compared (int): On how many inputs its answers were compared.
        difference (Difference): To the answers of the model.
    """

    path: str
    kind: str
    dynamic: str
    compared: int
    difference: Difference

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.kind}, for any number of {self.dynamic}; its answers are those of "
            f"the model {self.difference}, compared on {self.compared} inputs"
        )


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Sequence[Any],
    *,
    compiled: bool = True,
    fixed_inputs: Sequence[int] = (),
    dynamic_shapes: Any = None,
    other_inputs: Sequence[Sequence[Any]] = (),
) -> Exported:
    r"""Writes a model to a file that runs without this package's Python code.

    The ending of the path says what is written:

    - ``.pt2``: a converted model (or a quantized one in evaluation, in floating point), compiled
      by AOTInductor to machine code that calls the kernels of ``libqlr_cpu.so``. With
      :obj:`compiled=False` the traced program of :func:`torch.export.save`.
    - ``.onnx``: a quantized model in evaluation as an ONNX graph with a pair of
      ``QuantizeLinear`` and ``DequantizeLinear`` at each of its quantizers, and weights as codes.

    The file takes graphs of any size. The numbers of nodes and edges are found from the examples,
    see :class:`~torch_geometric_qlr.io.example_inputs.GraphInputs`. Before the path is touched, the
    file is loaded again, and its answers are compared with those of the model on the examples and
    on a larger and a smaller graph that are made of them.

    Args:
        model (torch.nn.Module): The model, in ``eval()``.
        path (str or os.PathLike): The file, which is replaced in one step.
        example_inputs (tuple): Arguments of its ``forward``, such as :obj:`(x, edge_index)`: dense
            tensors, numbers and :obj:`None`. What is no tensor is fixed in the file.
        compiled (bool): Whether a ``.pt2`` file holds machine code. (default: :obj:`True`)
        fixed_inputs (list): Positions of inputs that are the same in many calls, as :obj:`[1]` for
            the edges of one graph. What is computed of them alone becomes a program of its own in
            the file, named :obj:`"terms"`, whose results the program :obj:`"model"` takes behind
            the inputs. Whoever calls them keeps the results as long as these inputs, and the sizes
            of the others, stay the same. (default: :obj:`()`)
        dynamic_shapes (tuple, optional): Dimensions that may change, as
            :func:`torch.export.export` takes them, in place of those that are found.
            (default: :obj:`None`)
        other_inputs (list): Further inputs to compare answers on; needed with
            :obj:`dynamic_shapes`, and in place of the derived ones. (default: :obj:`()`)

    Returns:
        Exported: What was written and compared; it prints as a sentence.

    Raises:
        InputError: If the ending is unknown, the model is in training, or the inputs are none that
            a file can take.
        NothingToQuantizeError: If the model is neither quantized nor converted.
        UnsupportedLayerError: If it is no module or compiled, or a converted one for ONNX.
        LazyModuleError: If a layer has no weights yet.
        ConfigError: If a range has never seen data.
        ExportError: If torch cannot trace or compile it, the packages for ONNX are missing, or the
            answers of the file are others: by how much. The path is as it was.

    Example:
        >>> import os, tempfile
        >>> import torch_geometric_qlr as qlr
        >>> layer = qlr.quantize(torch.nn.Linear(4, 2), bits=4).eval()
        >>> with torch.no_grad():
        ...     _ = layer(torch.rand(5, 4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/layer.pt2"
        ...     done = qlr.export(qlr.convert(layer), path, (torch.rand(5, 4),), compiled=False)
        >>> done.dynamic, done.difference.largest
        ('5 nodes (dimension 0 of input 0)', 0.0)
    """
    target = _target(path)
    model = _checked_model(model, target, compiled)
    example = check_plain(example_inputs, "example_inputs")
    others = [check_plain(each, f"other_inputs[{i}]") for i, each in enumerate(other_inputs)]
    fixed = _fixed(fixed_inputs, example, compiled and target.suffix == ".pt2", dynamic_shapes)
    if dynamic_shapes is None:
        graph = GraphInputs(example)
        trace_with, shapes, dynamic = graph.larger(), graph.dynamic_shapes, graph.words
        others = others or [trace_with, graph.smaller()]
    elif not others:
        raise InputError(
            "dynamic_shapes says that sizes change, but not how: pass other_inputs=[...] as well, "
            "inputs of another size to compare the answers on."
        )
    else:
        trace_with, shapes, dynamic = example, dynamic_shapes, str(dynamic_shapes)
    wanted = [(example, answer(model, example)), *((each, _asked(model, each)) for each in others)]
    with tempfile.TemporaryDirectory() as folder:
        made = os.path.join(folder, "model" + target.suffix)
        run, kind = _write(model, made, (trace_with, shapes), compiled, fixed)
        difference = max(compare(run, *one) for one in wanted)
        with open(made, "rb") as file:
            replace_file(str(target), lambda out: shutil.copyfileobj(file, out))
    return Exported(str(target), kind, dynamic, len(wanted), difference)


def _asked(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """What the model says to inputs of another size."""
    try:
        return answer(model, inputs)
    except Exception as error:
        raise ExportError(
            f"The model takes the example, but not inputs of shape {shapes_of(inputs)}, and a file "
            f"is checked on several sizes: {first_line(error)} A layer that caches its graph "
            f"(cached=True) takes one only; if the model asks for more of a graph than inputs made "
            f"of the example have, pass other_inputs=[...]."
        ) from error


def _write(
    model: nn.Module, path: str, tracing: tuple[Any, Any], compiled: bool, fixed: set[int]
) -> tuple[Callable[..., Any], str]:
    """Writes the file; what it computes, and what it is."""
    program = traced(model, *tracing)
    if path.endswith(".onnx"):
        return onnx_program(program, path, *tracing), "ONNX with QuantizeLinear pairs"
    if fixed:
        run = compiled_parts(program, path, tracing, fixed)
        return run, "machine code of AOTInductor in two programs"
    if compiled:
        return compiled_program(program, path), "machine code of AOTInductor"
    return saved_program(program, path), "a program of torch.export"


# Checked first ####################################################################################


def _target(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise InputError(
            f"{path!r} is no path. The order is qlr.export(model, path, (x, edge_index))."
        )
    target = Path(path)
    if target.suffix not in (".pt2", ".onnx"):
        raise InputError(
            f"{target.name}: its ending says what to write. Choose .pt2 for a program of torch, or "
            f".onnx."
        )
    if not target.parent.is_dir():
        raise InputError(f"{target}: there is no folder {target.parent}. Make it first.")
    return target


def _fixed(
    positions: Sequence[int], inputs: tuple[Any, ...], compiles: bool, shapes: Any
) -> set[int]:
    fixed = set(positions)
    if not fixed:
        return fixed
    tensors = {at for at, value in enumerate(inputs) if isinstance(value, Tensor)}
    if not fixed < tensors:
        raise InputError(
            f"fixed_inputs={list(positions)}: expected positions of some of the inputs that are "
            f"tensors, {sorted(tensors)}, but not all of them."
        )
    if not compiles or isinstance(shapes, dict):
        raise InputError(
            "fixed_inputs puts two programs into one compiled .pt2 file. Leave compiled=True, and "
            "pass dynamic_shapes as a tuple, if at all."
        )
    return fixed


def _checked_model(model: nn.Module, target: Path, compiled: bool) -> nn.Module:
    """A copy of the model that observes nothing."""
    check_module(model)
    if model.training:
        raise InputError(
            f"{type(model).__name__} is in training mode, and a file is for inference. Call "
            f"model.eval() first."
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_uninitialized_parameter(tensor):
            raise LazyModuleError(
                f"{name} is not initialized yet (lazy). Run one forward pass first, then export."
            )
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantLayer)}
    if not layers:
        raise NothingToQuantizeError(
            f"{type(model).__name__} has no quantized layer. Call qlr.quantize(model), train it, "
            f"and for a .pt2 file qlr.convert it; torch exports a float model by itself."
        )
    converted = [name for name, layer in layers.items() if isinstance(layer, PackedLayer)]
    if target.suffix == ".onnx":
        check_onnx()
        if converted:
            raise UnsupportedLayerError(
                f"{converted[0] or type(model).__name__} is converted, and its packed kernels are "
                f"no operators of ONNX. Export the quantized model that it was made of."
            )
    elif compiled and converted and backend_info()["library"] is None:
        raise ExportError(
            f"The kernels that compiled code calls are not here: {backend_info()['reason']}. Build "
            f"them, or export with compiled=False."
        )
    _check_ranges(layers)
    copied = copy_of(model)  # what it remembers of graphs stays what it is, too
    for module in copied.modules():
        if isinstance(module, Quantizer):
            module.fix()
    return copied


def _check_ranges(layers: dict[str, Any]) -> None:
    for layer in layers.values():
        for key, found in state_of(layer).items():
            if parameter_of(key) in type(layer)._qlr_made.weight_names:
                continue  # the range of a weight needs no data
            for quantizer in found.modules():
                if isinstance(quantizer, Quantizer) and not quantizer.has_range:
                    raise ConfigError(
                        f"{quantizer.path or type(layer).__name__} has never seen data, so it has "
                        f"no range. Train the model, or run it on data that reaches this layer."
                    )
