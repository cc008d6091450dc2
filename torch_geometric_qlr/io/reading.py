"""From a file to a model."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from torch_geometric_qlr.codes.weights import PackedWeight
from torch_geometric_qlr.config import QuantizerConfig
from torch_geometric_qlr.errors import (
    CheckpointError,
    ConfigError,
    InputError,
    LazyModuleError,
)
from torch_geometric_qlr.io.architecture import check_fits, check_routes
from torch_geometric_qlr.io.archive import ARCHIVE, read_archive
from torch_geometric_qlr.io.building import build, check_trust
from torch_geometric_qlr.io.format import File, check_file, check_module, dtype_name, shown
from torch_geometric_qlr.io.header import Damage
from torch_geometric_qlr.io.model_file import read_model
from torch_geometric_qlr.io.options import option_differences
from torch_geometric_qlr.io.versions import complete_state
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


@overload
def load(path: File, model: M, *, backend: str = "auto", trust: Sequence[str] = ()) -> M: ...


@overload
def load(
    path: File, model: None = None, *, backend: str = "auto", trust: Sequence[str] = ()
) -> nn.Module: ...


def load(
    path: File,
    model: nn.Module | None = None,
    *,
    backend: str = "auto",
    trust: Sequence[str] = (),
) -> nn.Module:
    r"""Reads what :func:`save` wrote, into a copy of the float architecture.

    Without a model it is built as the file says: if its class is of PyG, of this package, of a
    package in :obj:`trust`, or of a module that is imported already, and if all arguments of its
    constructor are known, which are those that the model keeps under their names as plain values.

    Args:
        path (str or os.PathLike or file): Where from. Its name may end as it likes.
        model (torch.nn.Module, optional): The *float* model that the file's was made from: not
            quantized, as its constructor builds it. Its weights do not matter; it is not changed.
            Its device, and of a quantized model its mode, are those of the result. By default it
            is built, on the default device. (default: :obj:`None`)
        backend (str): Who computes packed operations, as for
            :func:`~torch_geometric_qlr.convert`. (default: :obj:`"auto"`)
        trust (tuple): Names of packages, from which a file may have a class imported. To import a
            module is to run it. (default: :obj:`()`)

    Returns:
        torch.nn.Module: A quantized or converted model, whichever was saved, that computes exactly
        what the saved one did.

    Raises:
        CheckpointError: If the file is not from :func:`save`, damaged, or of a newer version, or
            if the model has other layers, shapes or options than the saved one, or has to be
            given.
        AlreadyQuantizedError: If the model is quantized in another way than the file, or converted.
        LazyModuleError: If a layer has no weights yet, and cannot take their shape from the file.
        BackendError: If the back end is not available.
        ConfigError: If :obj:`trust` has something else than names.
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
        ...     qlr.save(packed, f"{folder}/model.safetensors")
        ...     again = qlr.load(f"{folder}/model.safetensors")
        >>> torch.equal(again(x, edge_index), packed(x, edge_index))
        True
    """
    if model is not None:
        check_module(model)
    check_file(path, "read")
    check_trust(trust)
    with use_backend(backend):
        pass
    if model is not None:
        _check_holds_values(model)
    version, header, state = read_file(path)
    try:
        if model is None:
            num_bytes = sum(t.nbytes for t in state.values())
            out = build(header.get("constructor"), header["model"], num_bytes, trust)
            _check_holds_values(out)
        else:
            out = copy_of(model)
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

    What it is is seen by how it begins, whatever it is called.

    Args:
        path (str or os.PathLike or file): Where from.

    Raises:
        CheckpointError: If it is not from :func:`save`, damaged, or of a newer version.
        OSError: If it cannot be opened.
    """
    with _opened(path) as file:
        start = file.tell()
        size = file.seek(0, os.SEEK_END) - start
        file.seek(start)
        is_archive = file.read(len(ARCHIVE)) == ARCHIVE
        file.seek(start)
        try:
            if is_archive:
                return read_archive(file, shown(path))
            return read_model(file, size, shown(path))
        except Damage as error:
            raise CheckpointError(f"{shown(path)} is damaged: {error}. Save it again.") from error


@contextmanager
def _opened(path: File) -> Iterator[IO[bytes]]:
    """A binary file with places."""
    if isinstance(path, (str, os.PathLike)):
        with open(path, "rb") as file:
            yield file if file.seekable() else io.BytesIO(file.read())
    elif isinstance(path, io.RawIOBase) and path.seekable():  # may read less than it is asked for
        whole = io.BufferedReader(path)
        try:
            yield whole
        finally:
            whole.detach()
    elif getattr(path, "seekable", bool)():
        yield path
    else:
        content: Any = path.read()
        if not isinstance(content, bytes):
            raise InputError(
                f"{type(path).__name__}.read() gives a {type(content).__name__}, not bytes: open "
                f"the file with open(path, 'rb')."
            )
        yield io.BytesIO(content)


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
            there, here = (f"{dtype_name(x.dtype)} {list(x.shape)}" for x in (state[name], t))
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
