"""A model on a whole graph, layer by layer: what is in memory is a block, and packed rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data, FeatureStore
from tqdm.auto import tqdm

from torch_geometric_qlr.codes.chains import plain, with_promise
from torch_geometric_qlr.errors import InputError
from torch_geometric_qlr.layerwise.blocks import WholeGraph, loops_like
from torch_geometric_qlr.layerwise.checks import (
    check_data,
    check_features,
    check_model,
    check_options,
)
from torch_geometric_qlr.layerwise.prepared import InBlocks
from torch_geometric_qlr.layerwise.rows import FloatRows, GivenRows, Memory, Reader, Rows, keep
from torch_geometric_qlr.layerwise.steps import Step, steps_of
from torch_geometric_qlr.nn.packed import PackedLayer

__all__ = ["inference"]


@torch.no_grad()
def inference(
    model: nn.Module,
    data: Data,
    *,
    features: Any = None,
    layers: Sequence[Any] | None = None,
    batch_size: int | None = None,
    store: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Tensor:
    r"""What a model gives for all nodes of a graph, computed layer by layer in blocks of nodes with
    all of their neighbours.

    The answers are those of ``model(x, edge_index)``. What that keeps in memory as floats for all
    nodes is there for one block at a time. Between two layers the rows of all nodes are kept as the
    codes that the quantizers of the next layer make of them, :math:`b / 32` of the floats; as
    floats where the next layer reads the numbers themselves, as one does that adds a node's own
    features to the sum, and in a model that is not converted.

    What a convolution computes from its edges is computed of the whole graph: degrees by which it
    normalises, self loops. (PyG's own ``BasicGNN.inference`` has the edges of a batch for that.)

    Args:
        model (torch.nn.Module): A converted, quantized or float model in evaluation.
        data (torch_geometric.data.Data): The graph, with :obj:`edge_index` or :obj:`adj_t`, and
            what there is of :obj:`x`, :obj:`edge_weight` and :obj:`edge_attr`.
        features (FeatureStore or PackedTensor or torch.Tensor, optional): The features in the place
            of ``data.x``, such as a :class:`~torch_geometric_qlr.loader.PackedFeatureStore`.
            A converted model takes packed ones as codes, others read their values.
        layers (list, optional): The layers in order: functions ``(model, x, edge_index)``, with
            :obj:`edge_weight` or :obj:`edge_attr` if they name it, or modules of the model. Each
            has one convolution. Not needed for models of PyG (``GCN``, ``GraphSAGE``, ``GIN``,
            ``GAT``, ``PNA``, ``EdgeCNN``), for a :class:`torch_geometric.nn.Sequential` that is a
            chain, and for a single convolution.
        batch_size (int, optional): Nodes in a block; by default as many as have a million edges.
        store (str or os.PathLike, optional): A folder for files with the rows between layers,
            which are mapped and gone at the end. By default they are in memory.
        progress (bool): Whether a bar tells how far it is. (default: :obj:`True`)

    Shapes:
        - **output:** :math:`(N, *)`, where the features are

    Raises:
        UnsupportedLayerError: If the layers are not known, or one of them looks further than a
            node's neighbours.
        InputError: If the model is in training, or the data is no such graph.
        ConfigError: If a range is not final, or belongs to all nodes of a batch.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> from torch_geometric.data import Data
        >>> from torch_geometric.nn import GraphSAGE
        >>> data = Data(x=torch.rand(100, 16), edge_index=torch.randint(100, (2, 500)))
        >>> model = qlr.quantize(GraphSAGE(16, 32, num_layers=2, out_channels=4), bits=4).eval()
        >>> _ = model(data.x, data.edge_index)
        >>> packed = qlr.convert(model)
        >>> out = qlr.inference(packed, data, batch_size=10, progress=False)
        >>> torch.equal(out, packed(data.x, data.edge_index))
        True
    """
    check_options(batch_size, store)
    check_model(model)
    check_data(data)
    x = _features(data, features)
    device = next((t.device for t in chain(model.parameters(), model.buffers())), x.device)
    graph = WholeGraph(*_edges(data), x.size(0), device)
    runs = InBlocks(model, graph)
    steps = steps_of(runs, model, layers)
    rows: Rows = FloatRows(x) if isinstance(x, Tensor) else GivenRows(x, _is_converted(model))
    readers = [_reader(runs, step, graph) for step in steps[1:]]
    with tqdm(total=graph.num_nodes * len(steps), unit=" nodes", disable=not progress) as bar:
        for i, (step, read) in enumerate(zip(steps, [*readers, None], strict=True)):
            bar.set_description(f"layer {i + 1} of {len(steps)}")
            blocks = _outputs(runs, step, rows, graph, batch_size, bar)
            memory = Memory(None if read is None else store, x.device)
            rows = keep(blocks, graph.num_nodes, read, memory)
    assert isinstance(rows, FloatRows)
    return rows.values


def _features(data: Data, features: Any) -> Any:
    x = data.x if features is None else features
    if isinstance(x, FeatureStore) and not isinstance(x, Data):
        x = x.get_tensor(group_name=None, attr_name="x", index=None)
    check_features(x)
    return x


def _edges(data: Data) -> tuple[Any, dict[str, Tensor]]:
    adj = data.get("adj_t")
    if adj is not None:  # it has the weights
        return adj, {}
    found = {name: data.get(name) for name in ("edge_weight", "edge_attr")}
    extras = {name: value for name, value in found.items() if value is not None}
    for name, value in extras.items():
        if value.size(0) != data.edge_index.size(1):
            raise InputError(
                f"inference: {name} has {value.size(0)} rows for {data.edge_index.size(1)} edges."
            )
    return data.edge_index, extras


def _is_converted(model: nn.Module) -> bool:
    return any(isinstance(module, PackedLayer) for module in model.modules())


def _outputs(
    runs: InBlocks, step: Step, rows: Rows, graph: WholeGraph, batch_size: int | None, bar: Any
) -> Iterator[tuple[int, Tensor]]:
    """What a layer gives for the nodes of each block."""
    for block in graph.blocks(batch_size):
        runs.enter(block)
        out: Tensor = plain(step(rows.select(block.nodes, block.device), block))
        start = block.start
        del block  # before the next one is made
        yield start, out
        bar.update(len(out))


def _reader(runs: InBlocks, step: Step, graph: WholeGraph) -> Reader:
    def read(readings: Any) -> None:
        block = loops_like(graph, readings.shape[0])
        runs.enter(block)
        step(with_promise(readings), block)

    return read
