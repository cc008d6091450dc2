"""The rows of packed features that a sampled batch needs."""

from __future__ import annotations

from typing import Any

from torch_geometric.data import Data, FeatureStore, HeteroData
from torch_geometric.transforms import BaseTransform

from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.tensor import PackedTensor
from torch_geometric_qlr.transforms.pack_data import node_stores

__all__ = ["GatherFeatures"]


class GatherFeatures(BaseTransform):
    r"""The :obj:`transform` of a loader that samples: gives each batch the features of its nodes.

    PyG's loaders select rows of tensors only. A :class:`~torch_geometric.data.Data` with packed
    features, or a graph whose features are in a store, is sampled with this::

        NeighborLoader(data, ..., transform=GatherFeatures())
        HGTLoader(graph, ..., transform=GatherFeatures(store))

    It runs where the loader filters, which by default is in its worker processes. Everything else
    of the batch (labels, masks, weights of edges) stays as the loader has made it.

    Args:
        store (FeatureStore, optional): Where the features are. By default they are the packed
            tensors that the graph itself holds. (default: :obj:`None`)

    Raises:
        InputError: If a batch does not say which nodes it has, or nothing is there to gather.

    Example:
        >>> from torch_geometric.data import Data
        >>> from torch_geometric_qlr.transforms import PackFeatures
        >>> data = PackFeatures(bits=4)(Data(x=torch.rand(10, 8)))
        >>> data.n_id = torch.tensor([4, 7])  # as a loader does
        >>> GatherFeatures()(data).x.shape
        torch.Size([2, 8])
    """

    def __init__(self, store: FeatureStore | None = None) -> None:
        if store is not None and not isinstance(store, FeatureStore):
            raise InputError(
                f"GatherFeatures: store is a {type(store).__name__}; pass a feature store, such as "
                f"a PackedFeatureStore, or none for the features of the batch itself."
            )
        self.store = store

    def forward(self, data: Data | HeteroData) -> Data | HeteroData:
        """The batch with the rows of its nodes."""
        found = _own(data) if self.store is None else self._stored(data)
        if not found:
            raise InputError(
                "GatherFeatures: the nodes of the batch have no packed features. Pack them with "
                "PackFeatures, or pass the store that has them."
            )
        for holder, attr, features in found:
            holder[attr] = features
        return data

    def _stored(self, data: Data | HeteroData) -> list[tuple[Any, str, Any]]:
        assert self.store is not None
        holders = dict(node_stores(data))
        attrs = [a for a in self.store.get_all_tensor_attrs() if a.group_name in holders]
        for attr in attrs:
            attr.index = _nodes(attr.group_name, holders[attr.group_name])
        found = self.store.multi_get_tensor(attrs)
        return [
            (holders[attr.group_name], attr.attr_name, features)
            for attr, features in zip(attrs, found, strict=True)
        ]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.store or ''})"


def _own(data: Data | HeteroData) -> list[tuple[Any, str, Any]]:
    return [
        (holder, attr, value.index_select(_nodes(group, holder)))
        for group, holder in node_stores(data)
        for attr, value in holder.items()
        if isinstance(value, PackedTensor)
    ]


def _nodes(group: str | None, holder: Any) -> Any:
    if "n_id" not in holder:
        where = "The batch" if group is None else f"The batch's {group!r}"
        raise InputError(
            f"GatherFeatures: {where} has no n_id, the nodes that were sampled. Pass this as the "
            f"transform of a loader that samples, such as NeighborLoader."
        )
    return holder.n_id
