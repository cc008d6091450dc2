"""A quantized model as a graph of ONNX, written, and run by onnxruntime."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.errors import ExportError
from torch_geometric_qlr.io.answers import first_line
from torch_geometric_qlr.io.qdq import OPSET, SMALL_CODES, with_qdq

__all__ = ["check_onnx", "onnx_program"]

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_onnx() -> None:
    r"""Looks whether the packages are there.

    Raises:
        ExportError: If one of them is missing: which, and how they are installed.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            f"To write ONNX and to check it, {' and '.join(missing)} must be installed: "
            f'pip install "torch-geometric-qlr[onnx]".'
        )


def onnx_program(
    program: torch.export.ExportedProgram, path: str, inputs: tuple[Any, ...], shapes: Any
) -> Callable[..., Any]:
    r"""Writes a traced quantized model as ONNX, and loads it.

    Args:
        program (torch.export.ExportedProgram): The program.
        path (str): Where to.
        inputs (tuple): What it was traced with.
        shapes (tuple): Which dimensions may change.

    Returns:
        callable: What the file computes.

    Raises:
        ExportError: If the model does something that ONNX has no operator for.
    """
    input_names, output_names = _names(program)
    with torch.no_grad(), _quiet():
        try:
            made: Any = torch.onnx.export(
                *(with_qdq(program), inputs),
                dynamo=True,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                verbose=False,
                input_names=input_names,
                output_names=output_names,
            )
        except Exception as error:
            raise ExportError(f"torch.onnx cannot write the model: {first_line(error)}") from error
    _narrow(made.model)
    _clear(made.model)
    made.save(path, external_data=False)
    return _Session(path)


def _names(program: torch.export.ExportedProgram) -> tuple[list[str], list[str]]:
    """Inputs as the forward names them, without those that are no tensors, and outputs."""
    signature = program.graph_signature
    inputs = [name for name in signature.user_inputs if isinstance(name, str)]
    count = sum(isinstance(name, str) for name in signature.user_outputs)
    return inputs, ["output"] if count == 1 else [f"output_{i}" for i in range(count)]


def _narrow(model: Any) -> None:
    """Codes that torch has no type for get theirs."""
    import ml_dtypes
    import onnx_ir

    for name, value in model.graph.initializers.items():
        if SMALL_CODES in name:
            codes = value.const_value.numpy().astype(ml_dtypes.uint4)
            value.const_value = onnx_ir.Tensor(codes, name=name)
            value.type = onnx_ir.TensorType(onnx_ir.DataType.UINT4)


def _clear(model: Any) -> None:
    """Where in the user's files each operation comes from stays out of the file."""
    model.graph.metadata_props.clear()
    for each in (*model.graph, *model.graph.inputs, *model.graph.initializers.values()):
        each.metadata_props.clear()
    for node in model.graph:
        for value in node.outputs:
            value.metadata_props.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What torch and onnxscript say of their own ways is no news for who exports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


class _Session:
    """A file as a function of tensors."""

    def __init__(self, path: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, *inputs: Any) -> tuple[Tensor, ...]:
        given = [t.detach().cpu().numpy() for t in inputs if isinstance(t, Tensor)]
        names = [value.name for value in self.session.get_inputs()]
        outputs = self.session.run(None, dict(zip(names, given, strict=True)))
        return tuple(map(torch.from_numpy, outputs))
