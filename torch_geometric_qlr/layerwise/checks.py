"""What cannot be computed in blocks of nodes, said before anything is computed."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import MessagePassing

from torch_geometric_qlr.errors import ConfigError, InputError, UnsupportedLayerError
from torch_geometric_qlr.expect import expect_module
from torch_geometric_qlr.layers.pyg import is_of_pyg
from torch_geometric_qlr.layers.state import STATE, LayerState, parameter_of, state_of
from torch_geometric_qlr.nn import QuantLayer
from torch_geometric_qlr.nn.registry import find_spec
from torch_geometric_qlr.quantizers import Quantizer
from torch_geometric_qlr.tensor import PackedTensor

__all__ = ["check_data", "check_features", "check_model", "check_options"]

#: PyG's layers that look at all nodes at once, and what is made of them, unless they are set up
#: otherwise.
_LOOKS_AT_ALL: Mapping[str, Callable[[Any], bool]] = {
    "GPSConv": lambda layer: True,
    "GraphNorm": lambda layer: True,
    "GraphSizeNorm": lambda layer: True,
    "InstanceNorm": lambda layer: not layer.track_running_stats,
    "LayerNorm": lambda layer: getattr(layer, "mode", "node") == "graph",
    "MeanSubtractionNorm": lambda layer: True,
    "PairNorm": lambda layer: True,
}


def check_model(model: Any) -> None:
    r"""Whether what a model makes of a node depends on its neighbours only.

    Args:
        model (torch.nn.Module): The model.

    Raises:
        UnsupportedLayerError: If it is none, or if one of its layers looks further.
        InputError: If it is in training.
        ConfigError: If a range is not final.
    """
    expect_module(model, "inference")
    named = [(n, m) for n, m in model.named_modules() if STATE not in n.split(".")]
    training = [name for name, module in named if module.training]
    if training:
        raise InputError(
            f"inference: {training[0] or type(model).__name__} is in training mode. Call "
            f"model.eval()."
        )
    for name, module in named:
        where = name or type(module).__name__
        if _looks_at_all(module):
            raise UnsupportedLayerError(
                f"{where}: {type(module).__name__} looks at all nodes at once, and a block has few "
                f"of them. Call the model on the whole graph, or use a norm of each node, such as "
                f"batch norm."
            )
        if isinstance(module, MessagePassing):
            _check_conv(where, module)
    for quantizer in _quantizers_of_features(model):
        _check_range(quantizer)


def _looks_at_all(module: nn.Module) -> bool:
    """Whether a class of the table is among those that a module inherits from."""
    own = (cls.__name__ for cls in type(module).__mro__ if is_of_pyg(cls))
    return any(_LOOKS_AT_ALL[name](module) for name in own if name in _LOOKS_AT_ALL)


def _check_conv(where: str, conv: Any) -> None:
    spec = find_spec(conv)
    hops = 1 if spec is None else spec.hops(conv)
    if hops != 1:
        raise UnsupportedLayerError(
            f"{where}: {type(conv).__name__} propagates {hops} times in one layer, and a block has "
            f"the neighbours of its nodes only. Call the model on the whole graph, or on batches "
            f"of a NeighborLoader with as many hops."
        )
    if not {"edge_index", "adj_t"} & set(inspect.signature(conv.forward).parameters):
        raise UnsupportedLayerError(
            f"{where}: {type(conv).__name__} takes no edge_index, so it finds its neighbours "
            f"itself, and a block has few of the nodes. Find them for the whole graph, or name the "
            f"edges edge_index if it takes them."
        )
    if conv.flow != "source_to_target":
        raise UnsupportedLayerError(
            f"{where}: its flow is {conv.flow!r}, and blocks are made of edges that lead to their "
            f"nodes. Turn the edges around, and the flow to 'source_to_target'."
        )


def _quantizers_of_features(model: nn.Module) -> Iterator[Quantizer]:
    for layer in model.modules():
        if not isinstance(layer, QuantLayer):
            continue
        state: LayerState = state_of(layer)
        for key, found in state.items():
            if parameter_of(key) in type(layer)._qlr_made.weight_names:
                continue
            yield from (q for q in found.modules() if isinstance(q, Quantizer))


def _check_range(quantizer: Quantizer) -> None:
    name = quantizer.path or "a quantizer"
    if not quantizer.is_frozen and not quantizer.is_fixed:
        raise ConfigError(
            f"{name}: its range is not final, and every block would move it. Train or calibrate "
            f"the model, or convert it."
        )
    by_row = quantizer.config.granularity == "node" and not quantizer.follows_skewness
    if not quantizer.is_static and not by_row:
        raise ConfigError(
            f"{name}: the codes of a node depend on all others, whose numbers are not in a block. "
            f"Use statistics='running', or truncation=None or 'bt' for ranges per node."
        )


def check_data(data: Any) -> None:
    r"""Whether this is a graph with one type of nodes.

    Args:
        data (torch_geometric.data.Data): The graph.

    Raises:
        InputError: If it is not.
    """
    if isinstance(data, HeteroData):
        raise InputError(
            "inference: a HeteroData has several types of nodes. Call the model on it as a whole, "
            "or on the batches of a NeighborLoader with num_neighbors=[-1, ...]."
        )
    if not isinstance(data, Data):
        raise InputError(
            f"inference: data is a {type(data).__name__}; pass a torch_geometric.data.Data with "
            f"the edges of the whole graph. A loader is for model.inference(loader) of PyG."
        )
    if data.get("adj_t") is None and data.edge_index is None:
        raise InputError("inference: the data has no edges. Give it an edge_index or an adj_t.")


def check_features(x: Any) -> None:
    r"""Whether these are the features of nodes.

    Args:
        x (torch.Tensor or PackedTensor): The features.

    Raises:
        InputError: If they are not.
    """
    if isinstance(x, PackedTensor):
        return
    if x is None:
        raise InputError(
            "inference: the data has no features. Give it an x, or pass a store as features=."
        )
    if not isinstance(x, Tensor) or x.dim() < 2 or x.layout != torch.strided:
        shown = (
            f"{x.layout} of shape {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        )
        raise InputError(
            f"inference: features are rows of a dense or packed matrix, got {shown}. Use "
            f"x.to_dense(), or pack them with PackFeatures."
        )


def check_options(batch_size: Any, store: Any) -> None:
    r"""Whether a number of nodes is one, and a folder is there.

    Args:
        batch_size (int, optional): The number.
        store (str or os.PathLike, optional): The folder.

    Raises:
        ConfigError: If it is not.
    """
    is_count = isinstance(batch_size, int) and not isinstance(batch_size, bool)
    if batch_size is not None and not (is_count and batch_size >= 1):
        raise ConfigError(f"inference: batch_size is {batch_size!r}; it is a number of nodes.")
    if store is not None and not os.path.isdir(store):
        raise ConfigError(f"inference: store is {store!r}; it is a folder that is there.")
