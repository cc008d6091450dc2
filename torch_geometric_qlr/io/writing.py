"""From a model to a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torch_geometric_qlr.errors import InputError, LazyModuleError, NothingToQuantizeError
from torch_geometric_qlr.files.atomic import replace_file
from torch_geometric_qlr.io.building import constructor_of
from torch_geometric_qlr.io.format import DTYPES, File, check_file, check_module, dtype_name
from torch_geometric_qlr.io.model_file import ModelFile
from torch_geometric_qlr.io.options import options_of
from torch_geometric_qlr.layers.pyg import is_uninitialized_parameter
from torch_geometric_qlr.layers.state import unwrapped_class
from torch_geometric_qlr.nn.read_back import recipe_of

__all__ = ["save"]


def save(model: nn.Module, path: File) -> None:
    r"""Writes a quantized or converted model to one safetensors file.

    The file holds how each layer is quantized, the learned ranges, and everything in the
    :obj:`state_dict`, bit for bit. Of a converted model it holds packed codes in place of float
    weights, without padding, so that at :math:`b` bits it has about :math:`b / 32` of the size of
    the float model's file. It holds no code: :func:`load` is given the float architecture, or
    builds it where the file says with which arguments.

    A path is replaced in one step when everything has been written: whatever happens meanwhile,
    what was there before stays.

    Args:
        model (torch.nn.Module): A model from :func:`~torch_geometric_qlr.quantize` or
            :func:`~torch_geometric_qlr.convert`.
        path (str or os.PathLike or file): Where to.

    Raises:
        NothingToQuantizeError: If the model is neither quantized nor converted.
        UnsupportedLayerError: If it is no module, or a compiled one.
        LazyModuleError: If a layer has no weights yet.
        InputError: If its :obj:`state_dict` holds something else than dense tensors, or
            :obj:`path` is no path and no binary file.
        OSError: If the file cannot be written.

    Example:
        >>> import os, tempfile
        >>> import torch_geometric_qlr as qlr
        >>> layer = qlr.quantize(torch.nn.Linear(400, 100, bias=False), bits=2).eval()
        >>> _ = layer(torch.rand(5, 400))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     qlr.save(qlr.convert(layer), f"{folder}/layer.safetensors")
        ...     os.path.getsize(f"{folder}/layer.safetensors") < 0.1 * layer.weight.nbytes
        True
    """
    check_module(model)
    check_file(path, "write")
    content = _content(model)
    if isinstance(path, (str, os.PathLike)):
        replace_file(os.fspath(path), content.write)
    else:
        content.write(path)


def _content(model: nn.Module) -> ModelFile:
    recipe = recipe_of(model)
    if not recipe.layers:
        raise NothingToQuantizeError(
            f"{type(model).__name__} has no quantized layer. Call qlr.quantize(model) first, or "
            f"save a float model with torch.save(model.state_dict(), path)."
        )
    state: Any = model.state_dict()
    tensors, aliases = _unique(_checked(state))
    metadata = getattr(state, "_metadata", {})
    header = {
        "model": unwrapped_class(model).__name__,
        **recipe.to_dict(),
        "modules": options_of(model),
        "aliases": aliases,
        "versions": {n: m["version"] for n, m in metadata.items() if m.get("version", 1) != 1},
    }
    constructor = constructor_of(model)
    if constructor is not None:
        header["constructor"] = constructor
    return ModelFile(header, tensors)


def _checked(state: Mapping[str, Any]) -> dict[str, Tensor]:
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{name}: the state_dict holds a {type(value).__name__} there (extra state), and "
                f"qlr.save writes tensors only. Save it apart."
            )
        if is_uninitialized_parameter(value):
            raise LazyModuleError(
                f"{name} is not initialized yet (lazy). Run one forward pass first, then save."
            )
        is_plain = value.layout == torch.strided and dtype_name(value.dtype) in DTYPES
        if not is_plain or value.is_meta:
            raise InputError(
                f"{name}: it is a tensor of layout {value.layout} and type {value.dtype} on "
                f"{value.device}, and qlr.save writes dense tensors with values only. Save it "
                f"apart, or register it with persistent=False."
            )
    return dict(state)


def _unique(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, the widest type first, and the names of those that are others' too."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    known: dict[Any, str] = {}
    for name, t in sorted(state.items(), key=lambda item: -item[1].element_size()):
        key = (t.device, t.data_ptr(), t.dtype, t.shape, t.stride())
        if t.numel() and key in known:
            aliases[name] = known[key]
        else:
            known[key] = name
            tensors[name] = t
    return tensors, aliases
