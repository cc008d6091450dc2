"""A model as a program of torch: traced, or compiled ahead into a library of machine code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import nn

from torch_geometric_qlr.errors import ExportError
from torch_geometric_qlr.io.answers import first_line
from torch_geometric_qlr.io.fused_steps import fuse_steps
from torch_geometric_qlr.io.kept_terms import parts_of
from torch_geometric_qlr.io.shared_terms import functional_module, share_terms

__all__ = ["MODEL", "TERMS", "compiled_parts", "compiled_program", "saved_program", "traced"]

#: The names of two programs in one file: what is kept, and what is called with it.
TERMS, MODEL = "terms", "model"


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
        fuse_steps(module)
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


def compiled_parts(
    program: torch.export.ExportedProgram,
    path: str,
    tracing: tuple[tuple[Any, ...], Any],
    fixed: Collection[int],
) -> Callable[..., Any]:
    r"""Compiles a program in two, of which a caller keeps what the first one gives.

    Args:
        program (torch.export.ExportedProgram): The program.
        path (str): Where to.
        tracing (tuple): The inputs that it was traced with, and which dimensions may change.
        fixed (Collection[int]): Positions of the inputs that the first one computes of.

    Returns:
        callable: What both compute, one after the other.

    Raises:
        ExportError: If it cannot be compiled.
        InputError: If nothing is computed of these inputs alone.
    """
    from torch._inductor.package import load_package, package_aoti

    inputs, shapes = tracing
    parts = parts_of(program.module(check_guards=False), fixed)
    with torch.no_grad(), _words("compile"):
        kept = parts.terms(*inputs)
        files = {
            TERMS: _machine_code(parts.terms, inputs, shapes),
            MODEL: _machine_code(parts.rest, (*inputs, *kept), ((*shapes, *parts.shapes),)),
        }
        package_aoti(path, files)
    terms, model = (load_package(path, name) for name in files)
    return lambda *given: model(*given, *terms(*given))


def _machine_code(module: nn.Module, inputs: tuple[Any, ...], shapes: Any) -> Any:
    from torch import _inductor as inductor

    program = torch.export.export(module, inputs, dynamic_shapes=shapes)
    options = {"aot_inductor.package": True}
    return inductor.aot_compile(program.module(check_guards=False), inputs, options=options)


@contextlib.contextmanager
def _words(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ExportError(
            f"torch cannot {what} the model: {first_line(error)} The usual reason is a number that "
            f"is read from a tensor, as the number of graphs from a batch; pass it as an argument."
        ) from error
