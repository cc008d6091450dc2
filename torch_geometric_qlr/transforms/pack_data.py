"""Graphs with packed features, and back: transforms of PyG's data objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch_geometric.data import Data, HeteroData
from torch_geometric.data.data import BaseData
from torch_geometric.transforms import BaseTransform

from torch_geometric_qlr.errors import ConfigError, InputError, NothingToQuantizeError
from torch_geometric_qlr.quantizers import MinMax
from torch_geometric_qlr.tensor import PackedTensor

__all__ = ["PackFeatures", "UnpackFeatures", "node_stores"]


def node_stores(data: Data | HeteroData) -> Iterator[tuple[str | None, Any]]:
    r"""What a graph holds of its nodes, by their type, which is :obj:`None` if there is but one.

    Args:
        data (Data or HeteroData): The graph.

    Raises:
        InputError: If it is none.
    """
    if not isinstance(data, BaseData):
        raise InputError(
            f"Expected a Data or HeteroData (got {type(data).__name__}). Features alone are packed "
            f"by PackedTensor.from_float, or pack_features(model, x)."
        )
    if isinstance(data, HeteroData):
        yield from data.node_items()
    else:
        yield None, data._store


class PackFeatures(BaseTransform):
    r"""Puts a :class:`~torch_geometric_qlr.tensor.PackedTensor` in the place of the features of
    every type of nodes, which takes :math:`b / 32` of the memory.

    A converted model takes them as they are, a quantized model reads their values, and
    :class:`UnpackFeatures` makes floats of them for any other. The ranges are those of
    :class:`~torch_geometric_qlr.quantizers.MinMax`; :func:`~torch_geometric_qlr.pack_features` has
    the codes that a trained model makes.

    A loader that samples, such as PyG's :class:`NeighborLoader`, selects rows of tensors only and
    hands packed features on whole: give it a
    :class:`~torch_geometric_qlr.loader.GatherFeatures`.

    Args:
        bits (int): Width of a code, 1 to 8. (default: :obj:`8`)
        granularity (str): One range per :obj:`"node"`, per :obj:`"feature"`, or for all, of each
            type of nodes, as :obj:`"tensor"`. (default: :obj:`"node"`)
        attrs (list): The attributes to pack; a type of nodes that does not have one stays as it
            is. (default: :obj:`("x",)`)

    Raises:
        ConfigError: If a width or granularity is none of these.
        InputError: If features are no float matrix, or hold NaN or Inf.
        NothingToQuantizeError: If the graph has no such attribute, or all are packed.

    Example:
        >>> from torch_geometric.data import Data
        >>> data = Data(x=torch.rand(100, 64), edge_index=torch.randint(100, (2, 500)))
        >>> packed = PackFeatures(bits=4, granularity="feature")(data)
        >>> packed.x.data.nbytes / data.x.nbytes
        0.125
    """

    def __init__(
        self, bits: int = 8, granularity: str = "node", attrs: Sequence[str] = ("x",)
    ) -> None:
        self.method = MinMax(bits, granularity)
        names = (attrs,) if isinstance(attrs, str) else attrs
        is_names = isinstance(names, (tuple, list)) and all(isinstance(n, str) for n in names)
        if not is_names:
            raise ConfigError(f"PackFeatures: attrs is {attrs!r}; name attributes, such as ('x',).")
        self.attrs = tuple(names)

    def forward(self, data: Data | HeteroData) -> Data | HeteroData:
        """The data with packed attributes; what is packed already stays."""
        packed = {}
        for group, store in node_stores(data):
            for attr in self.attrs:
                if attr not in store or isinstance(store[attr], PackedTensor):
                    continue
                try:
                    packed[group, attr] = self.method.pack(store[attr])
                except InputError as error:
                    where = attr if group is None else f"{group}.{attr}"
                    raise InputError(f"PackFeatures: {where}: {error}") from None
        if not packed:
            raise NothingToQuantizeError(
                f"PackFeatures: no nodes have floats as {' or '.join(self.attrs)}. Name the "
                f"attributes with attrs=(...); what is packed already stays as it is."
            )
        for (group, attr), features in packed.items():
            store = data._store if group is None else data[group]
            store[attr] = features
            store.num_nodes = len(features)  # PyG reads the number off tensors only
        return data

    def __repr__(self) -> str:
        return f"{type(self).__name__}(bits={self.method.bits}, {self.method.granularity!r})"


class UnpackFeatures(BaseTransform):
    r"""Makes floats of all packed features of a graph: for models that know nothing of packing,
    best on the batches that a loader has sampled.

    Example:
        >>> from torch_geometric.data import Data
        >>> data = PackFeatures(bits=8)(Data(x=torch.rand(5, 4)))
        >>> UnpackFeatures()(data).x.dtype
        torch.float32
    """

    def forward(self, data: Data | HeteroData) -> Data | HeteroData:
        """The data with the values of what was packed."""
        for _, store in node_stores(data):
            for attr, value in list(store.items()):
                if isinstance(value, PackedTensor):
                    store[attr] = value.dequantize()
        return data
