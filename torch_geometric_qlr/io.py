"""Quantized and converted models in one small file: how they are quantized, ranges and codes.

A file is what ``torch.load(path, weights_only=True)`` reads: a dictionary of plain values and one
tensor of bytes. The bytes are a compressed header (what was done to the layers, and the name, type
and shape of every tensor) and all tensors one after the other, codes at their own width without
padding. One stream instead of a record per tensor is what keeps files of small models small.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import IO, Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch_geometric.nn.dense.linear import is_uninitialized_parameter

from torch_geometric_qlr._version import __version__
from torch_geometric_qlr.errors import (
    CheckpointError,
    InputError,
    LazyModuleError,
    NothingToQuantizeError,
    UnsupportedLayerError,
)
from torch_geometric_qlr.nn.checkpoint import report_fresh_ranges
from torch_geometric_qlr.nn.codes.weights import PackedWeight
from torch_geometric_qlr.nn.description import describe, rebuild
from torch_geometric_qlr.ops import use_backend

__all__ = ["load", "save"]

M = TypeVar("M", bound=nn.Module)
File: TypeAlias = "str | os.PathLike[str] | IO[bytes]"

_FORMAT = "torch_geometric_qlr"
_VERSION = 1


def save(model: nn.Module, path: File) -> None:
    r"""Writes a quantized or converted model to one file.

    The file holds how each layer is quantized, the learned ranges, and everything in the
    :obj:`state_dict`, bit for bit. Of a converted model it holds packed codes in place of float
    weights, without padding, so that at :math:`b` bits it has about :math:`b / 32` of the size of
    the float model's file. It holds no code: :func:`load` is given the float architecture.

    Args:
        model (torch.nn.Module): A model from :func:`~torch_geometric_qlr.quantize` or
            :func:`~torch_geometric_qlr.convert`.
        path (str or os.PathLike or file): Where to, as for :func:`torch.save`.

    Raises:
        NothingToQuantizeError: If the model is neither quantized nor converted.
        UnsupportedLayerError: If it is no module, or a compiled one.
        LazyModuleError: If a layer has no weights yet.
        InputError: If its :obj:`state_dict` holds something else than dense tensors.

    Example:
        >>> import os, tempfile
        >>> import torch_geometric_qlr as qlr
        >>> layer = qlr.quantize(torch.nn.Linear(400, 100, bias=False), bits=2).eval()
        >>> _ = layer(torch.rand(5, 400))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     qlr.save(qlr.convert(layer), f"{folder}/layer.pt")
        ...     os.path.getsize(f"{folder}/layer.pt") < 0.1 * layer.weight.nbytes
        True
    """
    _check_savable(model)
    state: Any = model.state_dict()
    tensors, aliases = _unique(_checked(state))
    description = describe(model)
    metadata = getattr(state, "_metadata", {})
    header = {
        "model": type(model).__name__,
        "byteorder": sys.byteorder,
        **description,
        "tensors": [[n, _dtype_name(t), list(t.shape)] for n, t in tensors.items()],
        "aliases": aliases,
        "versions": {n: m["version"] for n, m in metadata.items() if m.get("version", 1) != 1},
    }
    described = zlib.compress(json.dumps(header, separators=(",", ":")).encode(), level=9)
    parts = [torch.frombuffer(bytearray(described), dtype=torch.uint8)]
    parts += [_bytes_of(t) for t in tensors.values()]
    data = torch.cat(parts)
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "release": __version__,
        "header_bytes": len(described),
        "checksum": _checksum(data, len(described)),
        "data": data,
    }
    torch.save(content, path)


def load(path: File, model: M, *, backend: str = "auto") -> M:
    r"""Reads what :func:`save` wrote, into a copy of the float architecture.

    Args:
        path (str or os.PathLike or file): Where from, as for :func:`torch.load`.
        model (torch.nn.Module): The *float* model that the file's was made from: not quantized, as
            its constructor builds it. Its weights do not matter; it is not changed. Its device,
            and of a quantized model its mode, are those of the result.
        backend (str): Who computes packed operations, as for
            :func:`~torch_geometric_qlr.convert`. (default: :obj:`"auto"`)

    Returns:
        torch.nn.Module: A quantized or converted model, whichever was saved, that computes exactly
        what the saved one did.

    Raises:
        CheckpointError: If the file is not from :func:`save`, damaged, or of a newer version, or
            if the model has other layers or shapes than the saved one.
        AlreadyQuantizedError: If the model is quantized in another way than the file, or converted.
        LazyModuleError: If a layer has no weights yet, and cannot take their shape from the file.
        BackendError: If the back end is not available.

    Example:
        >>> import tempfile
        >>> import torch_geometric_qlr as qlr
        >>> from torch_geometric.nn import GCN
        >>> x, edge_index = torch.rand(3, 8), torch.tensor([[0, 1], [1, 2]])
        >>> model = qlr.quantize(GCN(8, 16, num_layers=2, out_channels=4), bits=4).eval()
        >>> _ = model(x, edge_index)
        >>> packed = qlr.convert(model)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     qlr.save(packed, f"{folder}/model.pt")
        ...     again = qlr.load(f"{folder}/model.pt", GCN(8, 16, num_layers=2, out_channels=4))
        >>> torch.equal(again(x, edge_index), packed(x, edge_index))
        True
    """
    _check_module(model)
    with use_backend(backend):
        pass
    header, state = _read(path)
    out = copy.deepcopy(model)
    _initialize_lazy(out, state, header["layers"])
    rebuild(out, header, backend)
    _check_state(out, state)
    try:
        out.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{_shown(path)}: the state does not fit {type(model).__name__}: {error}"
        ) from error
    if not header["converted"]:
        out.register_load_state_dict_post_hook(report_fresh_ranges)
    return out


# Writing ##########################################################################################


def _check_savable(model: Any) -> None:
    _check_module(model)
    if not describe(model)["layers"]:
        raise NothingToQuantizeError(
            f"{type(model).__name__} has no quantized layer. Call qlr.quantize(model) first, or "
            f"save a float model with torch.save(model.state_dict(), path)."
        )


def _check_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise UnsupportedLayerError(
            f"Expected a torch.nn.Module (got {type(model).__name__}): the model itself, not its "
            f"class or its state_dict. The order is qlr.save(model, path), qlr.load(path, model)."
        )
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise UnsupportedLayerError(
            "The model has been compiled with torch.compile. Pass the model that was compiled, "
            "model._orig_mod."
        )


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
        if value.layout != torch.strided or value.is_quantized:
            raise InputError(
                f"{name}: it is a tensor of layout {value.layout} and type {value.dtype}, and "
                f"qlr.save writes dense tensors only. Save it apart, or register it with "
                f"persistent=False."
            )
    return dict(state)


def _unique(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors in an order that aligns all of them, and the names of those that are others' too."""
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


def _bytes_of(t: Tensor) -> Tensor:
    return t.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _dtype_name(t: Tensor) -> str:
    return str(t.dtype).removeprefix("torch.")


def _checksum(data: Tensor, header_bytes: int) -> int:
    return zlib.crc32(data.numpy().data, header_bytes)


# Reading ##########################################################################################


def _shown(path: File) -> str:
    return os.fspath(path) if isinstance(path, (str, os.PathLike)) else "the file"


def _read(path: File) -> tuple[dict[str, Any], Any]:
    """The header and the state dict of a file, checked."""
    content = _content(path)
    data: Any = content.get("data")
    size: Any = content.get("header_bytes")
    is_whole = isinstance(data, Tensor) and data.dtype == torch.uint8 and isinstance(size, int)
    if not is_whole or content.get("checksum") != _checksum(data.contiguous(), size):
        raise CheckpointError(f"{_shown(path)} is damaged: its checksum is wrong. Save it again.")
    header = json.loads(zlib.decompress(data[:size].numpy().tobytes()))
    if header["byteorder"] != sys.byteorder:
        raise CheckpointError(
            f"{_shown(path)} was written on a {header['byteorder']}-endian machine, and this is a "
            f"{sys.byteorder}-endian one. Save a state_dict with torch.save there, which is "
            f"converted as it loads."
        )
    return header, _state(data[size:], header)


def _content(path: File) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise  # no such file, no permission: said best by the system
    except Exception as error:
        raise CheckpointError(
            f"{_shown(path)} cannot be read: it is damaged, cut short, or not from qlr.save "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''})."
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        state = isinstance(content, dict) and any(isinstance(v, Tensor) for v in content.values())
        hint = " It looks like a state_dict: model.load_state_dict(torch.load(path))."
        raise CheckpointError(f"{_shown(path)} is not from qlr.save.{hint if state else ''}")
    version = content.get("version")
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(f"{_shown(path)} is damaged: its version is {version!r}.")
    if version > _VERSION:
        raise CheckpointError(
            f"{_shown(path)} has format version {version}, written by release "
            f"{content.get('release')}; this release ({__version__}) reads version {_VERSION}. "
            f"Upgrade torch_geometric_qlr."
        )
    return content


def _state(stream: Tensor, header: Mapping[str, Any]) -> Any:
    state: Any = OrderedDict()
    # The header has any length; a copy of what follows begins at an aligned address again.
    stream, at = stream.clone(), 0
    for name, dtype, shape in header["tensors"]:
        kind: torch.dtype = getattr(torch, dtype)
        end = at + torch.Size(shape).numel() * kind.itemsize
        # A tensor of its own, which does not keep the whole stream alive.
        state[name] = stream[at:end].view(kind).view(shape).clone()
        at = end
    for name, same in header["aliases"].items():
        state[name] = state[same]
    modules = {name.rpartition(".")[0] for name in state}
    state._metadata = OrderedDict(
        (name, {"version": header["versions"].get(name, 1)})
        for name in sorted(modules | set(header["versions"]))
    )
    return state


def _initialize_lazy(
    model: nn.Module, state: Mapping[str, Tensor], layers: Mapping[str, Any]
) -> None:
    """Gives lazy layers the shapes of the file, as far as they can take them."""
    lazy = [n for n, p in model.named_parameters() if is_uninitialized_parameter(p)]
    shapes: dict[str, Tensor] = {n: state[n] for n in lazy if n in state}
    for name, entry in layers.items():
        for key, found in entry["quantizers"].items():
            where = f"{name}.{key}" if name else key
            if where in lazy and isinstance(found, Mapping) and "shape" in found:
                shapes[where] = torch.zeros(()).expand(found["shape"])
    # Those of torch become another class with their first input.
    deaf = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, LazyModuleMixin))
    if lazy and not any(n.startswith(deaf) for n in lazy):
        model.load_state_dict(shapes, strict=False)
    for name, p in model.named_parameters():
        if is_uninitialized_parameter(p):
            raise LazyModuleError(
                f"{name} is not initialized yet (lazy), and its layer cannot take its shape from a "
                f"file. Run one forward pass with a small batch first, then load."
            )


def _check_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    own: Mapping[str, Tensor] = model.state_dict()
    wrong = [f"{n}: the file has no such tensor" for n in own if n not in state]
    wrong += [f"{n}: the model has no such tensor" for n in state if n not in own]
    # Packed weights check what they take themselves: a scale has any of several shapes.
    codes = [
        f"{n}."
        for n, m in model.named_modules(remove_duplicate=False)
        if isinstance(m, PackedWeight)
    ]
    for name, t in own.items():
        if name.startswith(tuple(codes)):
            continue
        if name in state and (t.shape, t.dtype) != (state[name].shape, state[name].dtype):
            there, here = (f"{_dtype_name(x)} {list(x.shape)}" for x in (state[name], t))
            wrong.append(f"{name}: the file has {there}, the model {here}")
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise CheckpointError(
            f"The file is of another architecture than this {type(model).__name__}: {shown}."
        )
