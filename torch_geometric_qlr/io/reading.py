"""From a file to a model."""

from __future__ import annotations

import os
import reprlib
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from torch_geometric_qlr._version import __version__
from torch_geometric_qlr.codes.weights import PackedWeight
from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.errors import (
    CheckpointError,
    ConfigError,
    InputError,
    LazyModuleError,
)
from torch_geometric_qlr.io.architecture import check_fits, check_routes
from torch_geometric_qlr.io.format import (
    DTYPES,
    FORMAT,
    VERSION,
    File,
    check_file,
    check_module,
    checksum,
    dtype_name,
    shown,
)
from torch_geometric_qlr.io.header import Damage, read_header
from torch_geometric_qlr.io.options import option_differences
from torch_geometric_qlr.io.versions import complete_state, rename_quantizers
from torch_geometric_qlr.layers.pyg import is_uninitialized_parameter
from torch_geometric_qlr.layers.running import follow
from torch_geometric_qlr.nn.copying import copy_of
from torch_geometric_qlr.nn.recipe import Recipe
from torch_geometric_qlr.nn.rewrite import apply_recipe
from torch_geometric_qlr.nn.state_metadata import report_fresh_ranges
from torch_geometric_qlr.ops import use_backend
from torch_geometric_qlr.quantizers import check_method

__all__ = ["load", "read_file"]

M = TypeVar("M", bound=nn.Module)


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
            if the model has other layers, shapes or options than the saved one.
        AlreadyQuantizedError: If the model is quantized in another way than the file, or converted.
        LazyModuleError: If a layer has no weights yet, and cannot take their shape from the file.
        BackendError: If the back end is not available.
        InputError: If :obj:`path` is no path and no binary file, or the model holds no values.
        OSError: If the file cannot be opened.

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
    check_module(model)
    check_file(path, "read")
    with use_backend(backend):
        pass
    _check_holds_values(model)
    version, header, state = read_file(path)
    out = copy_of(model)
    try:
        _restore(out, version, header, state, backend)
    except CheckpointError as error:
        if not isinstance(path, (str, os.PathLike)):
            raise
        raise CheckpointError(f"{shown(path)}: {error}") from error
    return out


def _restore(
    model: nn.Module, version: int, header: dict[str, Any], state: Any, backend: str
) -> None:
    """Makes a float model, in place, what a file says."""
    _check_methods(header["layers"])
    _initialize_lazy(model, state, header["layers"])
    recipe = Recipe.from_dict(header)
    check_fits(model, recipe)
    apply_recipe(model, recipe, backend)
    if version == 1:
        complete_state(state, model)
    _check_same(_tensor_differences(model, state), model)
    if version > 1:
        _check_same(option_differences(header["modules"], model), model)
    check_routes(model, recipe)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"The state does not fit this {type(model).__name__}: {error}"
        ) from error
    if not header["converted"]:
        model.register_load_state_dict_post_hook(report_fresh_ranges)
        follow(model)


# The file #########################################################################################


def read_file(path: File) -> tuple[int, dict[str, Any], Any]:
    r"""The version, the header and the state dict of a file, checked.

    Args:
        path (str or os.PathLike or file): Where from.

    Raises:
        CheckpointError: If it is not from :func:`save`, damaged, or of a newer version.
        OSError: If it cannot be opened.
    """
    content = _content(path)
    version: int = content["version"]
    try:
        data, size = _data(content)
        header = read_header(data[:size].numpy().tobytes(), data.numel() - size, version)
        state = _state(data[size:], header)
        if version == 1:
            state = _renamed(state, header["layers"])
        return version, header, state
    except Damage as error:
        raise CheckpointError(f"{shown(path)} is damaged: {error}. Save it again.") from error


def _data(content: Mapping[str, Any]) -> tuple[Tensor, int]:
    """The bytes of a file, and how many of them are the header."""
    data: Any = content.get("data")
    size: Any = content.get("header_bytes")
    found: Any = content.get("checksum")
    is_data = type(data) is Tensor and data.dtype == torch.uint8 and data.dim() == 1
    if not is_data or data.layout != torch.strided or data.is_meta or not data.is_contiguous():
        raise Damage("its bytes are missing")
    if type(size) is not int or not 0 < size <= data.numel():
        raise Damage(f"its header is to have {reprlib.repr(size)} of {data.numel()} bytes")
    if type(found) is not int or found != checksum(data, size):
        raise Damage("its checksum is wrong")
    return data, size


def _content(path: File) -> dict[str, Any]:
    try:
        with _opened(path) as file:
            _check_container(file)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise  # no such file, no permission: said best by the system
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise CheckpointError(
            f"{shown(path)} cannot be read: it is damaged, cut short, or not from qlr.save "
            f"({type(error).__name__}: {lines[0][:200]})."
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        state = isinstance(content, dict) and any(isinstance(v, Tensor) for v in content.values())
        hint = " It looks like a state_dict: model.load_state_dict(torch.load(path))."
        raise CheckpointError(f"{shown(path)} is not from qlr.save.{hint if state else ''}")
    version = content.get("version")
    if type(version) is not int or version < 1:
        raise CheckpointError(f"{shown(path)} is damaged: its version is {reprlib.repr(version)}.")
    if version > VERSION:
        raise CheckpointError(
            f"{shown(path)} has format version {version}, written by release "
            f"{reprlib.repr(content.get('release'))}; this release ({__version__}) reads version "
            f"1 to {VERSION}. Upgrade torch_geometric_qlr."
        )
    return content


@contextmanager
def _opened(path: File) -> Iterator[IO[bytes]]:
    if isinstance(path, (str, os.PathLike)):
        with open(path, "rb") as file:
            yield file
    else:
        yield path


def _check_container(file: IO[bytes]) -> None:
    """Refuses an archive whose parts would take more memory than the file has bytes."""
    start = file.tell()
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
        size = file.seek(0, os.SEEK_END) - start
    except OSError as error:  # an offset that cannot be: nothing that the system has to say
        raise Damage(f"no archive: {error}") from error
    finally:
        file.seek(start)
    if sum(part.file_size for part in parts) > size:
        raise Damage("its parts are larger than the file")


def _state(stream: Tensor, header: Mapping[str, Any]) -> Any:
    state: Any = OrderedDict()
    at = 0
    for name, dtype, shape in header["tensors"]:
        kind = DTYPES[dtype]
        end = at + torch.Size(shape).numel() * kind.itemsize
        # A tensor of its own: aligned, and it does not keep the whole stream alive.
        raw = stream[at:end].clone()
        if kind == torch.bool and bool((raw > 1).any()):
            raise Damage(f"the tensor {reprlib.repr(name)} has flags that are neither 0 nor 1")
        state[name] = raw.view(kind).view(shape)
        at = end
    for name, same in header["aliases"].items():
        state[name] = state[same]
    modules = {name.rpartition(".")[0] for name in state}
    state._metadata = OrderedDict(
        (name, {"version": header["versions"].get(name, 1)})
        for name in sorted(modules | set(header["versions"]))
    )
    return state


def _renamed(state: Any, layers: Mapping[str, Any]) -> Any:
    out: Any = OrderedDict((rename_quantizers(name, layers), t) for name, t in state.items())
    names = {name: rename_quantizers(name, layers) for name in state._metadata}
    out._metadata = OrderedDict((names[name], m) for name, m in state._metadata.items())
    return out


def _check_holds_values(model: nn.Module) -> None:
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        if t.is_meta:
            raise InputError(
                f"{name} is on the meta device, where nothing can be loaded. Build the float model "
                f"on a device that holds values, such as the CPU; its weights do not matter."
            )


# The model ########################################################################################


def _check_methods(layers: Mapping[str, Any]) -> None:
    """Refuses quantizers of a method that this release does not have."""
    try:
        for name, entry in layers.items():
            for key, found in entry["quantizers"].items():
                for one in found if isinstance(found, list) else [found]:
                    if "config" in one:
                        check_method(QuantizerConfig(**one["config"]), f"{name}.{key}".strip("."))
    except ConfigError as error:
        raise CheckpointError(
            f"{error} The file is of another release, or damaged: load it with the release that "
            f"wrote it."
        ) from error


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


def _tensor_differences(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[str]:
    # Packed weights check what they take themselves: a scale has any of several shapes.
    named = model.named_modules(remove_duplicate=False)
    packed = tuple(f"{n}." for n, m in named if isinstance(m, PackedWeight))
    own = {n: t for n, t in model.state_dict().items() if not n.startswith(packed)}
    for name, t in own.items():
        if name not in state:
            yield f"{name}: the file has no such tensor"
        elif (t.shape, t.dtype) != (state[name].shape, state[name].dtype):
            there, here = (f"{dtype_name(x)} {list(x.shape)}" for x in (state[name], t))
            yield f"{name}: the file has {there}, the model {here}"
    for name in state:
        if name not in own and not name.startswith(packed):
            yield f"{name}: the model has no such tensor"


def _check_same(differences: Iterator[str], model: nn.Module) -> None:
    wrong = [found if len(found) < 300 else f"{found[:300]}..." for found in differences]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"The file is of another architecture than this {type(model).__name__}: "
            f"{'; '.join(wrong[:3])}{more}. Pass the architecture that was saved."
        )
