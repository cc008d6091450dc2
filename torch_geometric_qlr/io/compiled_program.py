"""A model as a program of torch: traced, or compiled ahead into a library of machine code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from torch_geometric_qlr.errors import ExportError
from torch_geometric_qlr.io.answers import first_line
from torch_geometric_qlr.io.shared_terms import functional_module, share_terms

__all__ = ["compiled_program", "saved_program", "traced"]


def traced(model: nn.Module, inputs: tuple[Any, ...], shapes: Any) -> torch.export.ExportedProgram:
    r"""The operations of a model, each once.

    Args:
        model (torch.nn.Module): The model.
        inputs (tuple): What to trace it with.
        shapes (tuple): Which dimensions may change, as :func:`torch.export.export` takes it.

    Raises:
        ExportError: If torch cannot follow the model.
    """
    with torch.no_grad(), _words("trace"):
        module = functional_module(torch.export.export(model, inputs, dynamic_shapes=shapes))
        share_terms(module)
        # Once more, for sizes that the terms which are left agree on.
        return torch.export.export(module, inputs, dynamic_shapes=shapes)


def saved_program(program: torch.export.ExportedProgram, path: str) -> Callable[..., Any]:
    r"""Writes a traced program, and reads it back.

    Args:
        program (torch.export.ExportedProgram): The program.
        path (str): Where to.

    Returns:
        callable: What the file computes.
    """
    program.example_inputs = None  # they are nobody's business, and large
    torch.export.save(program, path)
    return torch.export.load(path).module()


def compiled_program(program: torch.export.ExportedProgram, path: str) -> Callable[..., Any]:
    r"""Compiles a program with AOTInductor into a package, and loads it.

    Args:
        program (torch.export.ExportedProgram): The program.
        path (str): Where to.

    Returns:
        callable: What the file computes.

    Raises:
        ExportError: If it cannot be compiled.
    """
    # Imported when asked for: it takes longer than the package itself.
    from torch import _inductor as inductor

    with torch.no_grad(), _words("compile"):
        inductor.aoti_compile_and_package(program, package_path=path)
    return inductor.aoti_load_package(path)


@contextlib.contextmanager
def _words(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ExportError(
            f"torch cannot {what} the model: {first_line(error)} The usual reason is a number that "
            f"is read from a tensor, as the number of graphs from a batch; pass it as an argument."
        ) from error
