"""Packed features for PyG's loaders, in memory or in a file that is mapped."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import FeatureStore, TensorAttr

from torch_geometric_qlr.errors import CheckpointError, InputError
from torch_geometric_qlr.loader.mapped import MappedFile
from torch_geometric_qlr.loader.writing import Ends, write_features
from torch_geometric_qlr.quantizers import MinMax
from torch_geometric_qlr.tensor import PackedTensor

__all__ = ["PackedFeatureStore"]

Key = tuple[str | None, str]


class PackedFeatureStore(FeatureStore):
    r"""A :class:`torch_geometric.data.FeatureStore` that returns features as
    :class:`~torch_geometric_qlr.tensor.PackedTensor`.

    Of a file, rows are read when they are asked for. Worker processes of a loader map the same file
    and copy nothing; a pickled store holds the path. What is put into a store lies in memory, and
    never changes the file.

    Args:
        path (str or os.PathLike, optional): A file from :meth:`write`. Without it the store is
            empty. (default: :obj:`None`)
        bits (int, optional): Pack matrices of floats that are put into the store at this width;
            by default they stay floats. What is packed already, and what is not a matrix of floats,
            is kept as it is. (default: :obj:`None`)
        granularity (str): What shares a range then, as for :meth:`write`.
            (default: :obj:`"node"`)

    Raises:
        CheckpointError: If the file is damaged, of a newer version, or something else.
        ConfigError: If :obj:`bits` or :obj:`granularity` cannot be.
        OSError: If the file cannot be opened.

    Example:
        >>> store = PackedFeatureStore(bits=4)
        >>> store["paper", "x", None] = torch.rand(100, 64)
        >>> store["paper", "x", torch.tensor([3, 1])]
        PackedTensor(shape=[2, 64], bits=4, granularity='row', device='cpu', nbytes=80)
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        bits: int | None = None,
        granularity: str = "node",
    ) -> None:
        super().__init__()
        self._method = None if bits is None else MinMax(bits, granularity)
        self._tensors: dict[Key, Any] = {}
        self._file: MappedFile | None = None
        if path is not None:
            self._file = MappedFile(os.path.abspath(_path(path)))
            self._tensors.update(self._file.features())

    @staticmethod
    def write(
        path: str | os.PathLike[str],
        x: Any,
        *,
        bits: int = 8,
        granularity: str = "node",
        ranges: Ends | None = None,
        model: nn.Module | None = None,
        attr: str = "x",
        progress: bool = False,
    ) -> None:
        r"""Packs features into a file, batch by batch of rows, whatever their number.

        The file is a safetensors file with the rows of a
        :class:`~torch_geometric_qlr.tensor.PackedTensor`. A path is replaced in one step when
        everything has been written: until then, what was there before stays.

        Args:
            path (str or os.PathLike): The file.
            x (Any): The features: a tensor, a NumPy array or memmap, the path of a ``.npy``, a
                table or array of Arrow, or an iterable of batches of rows; for several types of
                nodes a dictionary of these.
            bits (int): Width of a code, 1 to 8. (default: :obj:`8`)
            granularity (str): One range per :obj:`"node"`, which takes 8 bytes per row, per
                :obj:`"feature"`, or for the whole :obj:`"tensor"`. The latter two read :obj:`x`
                twice, unless :obj:`ranges` are given. (default: :obj:`"node"`)
            ranges (tuple, optional): Lower and upper ends of the ranges per feature or tensor.
                Values outside get the code of the nearer end.
            model (torch.nn.Module, optional): A converted model. The codes are those that its
                first layer makes, as of :func:`~torch_geometric_qlr.pack_features`, in place of
                :obj:`bits`, :obj:`granularity` and :obj:`ranges`.
            attr (str): The attribute that the features are. (default: :obj:`"x"`)
            progress (bool): Show a progress bar. (default: :obj:`False`)

        Raises:
            InputError: If the features are no matrix of floats, or hold NaN or Inf; or if they can
                be read only once, and have to be twice.
            ConfigError: If another argument cannot be.
            NothingToQuantizeError: If the model does not quantize its features.
            OSError: If the file cannot be written.

        Example:
            >>> import tempfile
            >>> path = tempfile.mkdtemp() + "/features.safetensors"
            >>> PackedFeatureStore.write(path, torch.rand(100, 64), bits=4)
            >>> PackedFeatureStore(path)[None, "x", None].shape
            torch.Size([100, 64])
        """
        name = _path(path)
        sources: dict[Key, Any]
        if isinstance(x, Mapping):
            sources = {(group, attr): values for group, values in x.items()}
        else:
            sources = {(None, attr): x}
        options: Any = {"ranges": ranges, "model": model, "progress": progress}
        write_features(name, sources, bits, granularity, **options)

    def verify(self, progress: bool = False) -> None:
        r"""Reads the whole file and compares every block of 1 MiB with its checksum. What opening
        it checks is the header, the size and the checksum of the checksums.

        Args:
            progress (bool): Show a progress bar. (default: :obj:`False`)

        Raises:
            CheckpointError: If a block is damaged; it names the rows.
        """
        if self._file is not None:
            self._file.verify(progress)

    @property
    def path(self) -> str | None:
        """The file, if there is one."""
        return None if self._file is None else self._file.path

    # PyG's interface ##############################################################################

    def _put_tensor(self, tensor: Any, attr: TensorAttr) -> bool:
        if attr.index is not None:
            raise InputError(
                f"{_shown(attr)}: features are put as a whole, with index=None; rows that were "
                f"packed cannot be replaced one by one."
            )
        if isinstance(tensor, np.ndarray):
            tensor = torch.from_numpy(tensor)
        if not isinstance(tensor, (Tensor, PackedTensor)):
            raise InputError(f"{_shown(attr)}: expected a tensor, got {type(tensor).__name__}.")
        if self._method is not None and isinstance(tensor, Tensor):
            if tensor.dim() == 2 and tensor.is_floating_point():
                tensor = self._method.pack(tensor)
        self._tensors[attr.group_name, attr.attr_name] = tensor
        return True

    def _get_tensor(self, attr: TensorAttr) -> Any:
        key = (attr.group_name, attr.attr_name)
        if key not in self._tensors:
            listed = ", ".join(_name(*known) for known in self._tensors) or "nothing"
            raise InputError(f"{_shown(attr)}: there is no such tensor. The store has {listed}.")
        value, index = self._tensors[key], attr.index
        if index is None:
            return value
        if isinstance(index, slice):
            return value[index]
        rows = _rows(index, value.shape[0], attr)
        return value.index_select(rows) if isinstance(value, PackedTensor) else value[rows]

    def _remove_tensor(self, attr: TensorAttr) -> bool:
        return self._tensors.pop((attr.group_name, attr.attr_name), None) is not None

    def _get_tensor_size(self, attr: TensorAttr) -> tuple[int, ...] | None:
        value = self._tensors.get((attr.group_name, attr.attr_name))
        return None if value is None else tuple(value.shape)

    def get_all_tensor_attrs(self) -> list[TensorAttr]:
        """The names of all tensors."""
        return [TensorAttr(group_name=group, attr_name=attr) for group, attr in self._tensors]

    def __repr__(self) -> str:
        held = "".join(f"\n  {_name(*key)}: {_described(t)}" for key, t in self._tensors.items())
        return f"{type(self).__name__}({self.path or 'in memory'}){held and ':'}{held}"

    # Other processes ##############################################################################

    def __getstate__(self) -> dict[str, Any]:
        mapped = {} if self._file is None else self._file.features()
        own = {k: t for k, t in self._tensors.items() if not _is_same(t, mapped.get(k))}
        file = None if self._file is None else (self._file.path, self._file.crc)
        rest = {k: v for k, v in self.__dict__.items() if k not in ("_tensors", "_file")}
        return {"file": file, "names": list(self._tensors), "own": own, "rest": rest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state["rest"])
        self._file, found = None, dict(state["own"])
        if state["file"] is not None:
            path, crc = state["file"]
            self._file = MappedFile(path)
            if self._file.crc != crc:
                raise CheckpointError(f"{path}: another file has taken its place. Open it anew.")
            found = {**self._file.features(), **found}
        self._tensors = {key: found[key] for key in state["names"]}


def _path(path: Any) -> str:
    name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else path
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f"{name!r} is no path: pass text without null characters.")
    return name


def _is_same(value: Any, mapped: PackedTensor | None) -> bool:
    if mapped is None or not isinstance(value, PackedTensor):
        return False
    return value.data.data_ptr() == mapped.data.data_ptr() and value.shape == mapped.shape


def _name(group: Any, attr: Any) -> str:
    return str(attr) if group is None else f"{group}.{attr}"


def _shown(attr: TensorAttr) -> str:
    return f"PackedFeatureStore: {_name(attr.group_name, attr.attr_name)}"


def _described(value: Any) -> str:
    return repr(value) if isinstance(value, PackedTensor) else f"{value.dtype} {list(value.shape)}"


def _rows(index: Any, size: int, attr: TensorAttr) -> Tensor:
    """Numbers of rows as a vector."""
    if isinstance(index, np.ndarray):
        index = torch.from_numpy(index)
    elif isinstance(index, int):
        index = torch.tensor([index + size if index < 0 else index])
    if not isinstance(index, Tensor) or index.dim() != 1:
        raise InputError(f"{_shown(attr)}: an index is a slice, a number, or a vector of numbers.")
    if index.dtype != torch.bool:
        return index
    if index.numel() != size:
        raise InputError(f"{_shown(attr)}: a mask of {index.numel()} for {size} rows.")
    return index.nonzero().view(-1)
