# %%
# A graph whose features do not fit into memory is trained on samples, and answered for layer by
# layer. Here the features go into a packed file once, and stay there: in training, and when all
# nodes get their answers. PubMed stands for a graph that large, so that every step can be compared;
# none of them would be another one.
#
# ``NeighborLoader`` needs pyg-lib or torch-sparse:
# ``python -m pip install --no-build-isolation -e ".[sparse]"``.
from pathlib import Path

import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid
from torch_geometric.loader import NeighborLoader
from torch_geometric.nn import GraphSAGE
from torch_geometric.transforms import NormalizeFeatures

import torch_geometric_qlr as qlr

ROOT = "data"
EPOCHS = 3
dataset = Planetoid(ROOT, "PubMed", split="full", transform=NormalizeFeatures())
data = dataset[0]
print(data.num_nodes, "nodes,", data.num_edges, "edges,", data.num_features, "features")

# %%
# Features in a file
# ------------------
#
# ``write`` takes rows from a tensor, a file of NumPy, or batches of a generator as here, so that
# they need not exist all at once. Each row has 4 bits per number, and a range of its own.
batches = (data.x[start : start + 1000] for start in range(0, data.num_nodes, 1000))
qlr.loader.PackedFeatureStore.write("features.safetensors", batches, bits=4)
print(f"as floats {data.x.nbytes / 1e6:.1f} MB, ", end="")
print(f"in the file {Path('features.safetensors').stat().st_size / 1e6:.1f} MB")

# %%
# A store opens the file without reading it. The rest of the graph, edges and labels, is in memory.
store = qlr.loader.PackedFeatureStore("features.safetensors")
store[None, "y", None] = data.y
graph = Data(num_nodes=data.num_nodes)
size = (data.num_nodes, data.num_nodes)
graph.put_edge_index(data.edge_index, layout="coo", size=size)
print(store[None, "x", torch.tensor([7, 3])])

# %%
# Training on samples
# -------------------
#
# The loader takes store and graph in the place of a data object. A batch has 256 nodes to
# learn from and at most 10 and 10 neighbours of each, whose packed rows are read from the file. The
# quantized model takes them as they come. ``num_workers`` works as usual: each process maps the
# file, and copies nothing of it.
loader = NeighborLoader(
    (store, graph),
    num_neighbors=[10, 10],
    batch_size=256,
    input_nodes=data.train_mask.nonzero().view(-1),
    shuffle=True,
)
seed_everything(0)
model = GraphSAGE(data.num_features, 64, 2, dataset.num_classes, dropout=0.5)
qmodel = qlr.quantize(model, bits=4)
optimizer = torch.optim.Adam(qlr.parameter_groups(qmodel, lr=0.01))
for epoch in range(EPOCHS):
    qmodel.train()
    losses = []
    for batch in loader:
        optimizer.zero_grad()
        out = qmodel(batch.x, batch.edge_index)[: batch.batch_size]
        loss = F.cross_entropy(out, batch.y[: batch.batch_size])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}")

# %%
# Answers for all nodes
# ---------------------
#
# Sampled batches would compute a node again in each batch it is in, and guess at its neighbours.
# ``inference`` computes each layer once for each node, in blocks of nodes with *all* of their
# neighbours. A converted model takes the codes of the file as they are, and the rows between
# layers are kept packed, too. With ``store="folder"`` those would be in files as well.
packed = qlr.convert(qmodel.eval())
whole = Data(edge_index=data.edge_index, num_nodes=data.num_nodes)
out = qlr.inference(packed, whole, features=store, batch_size=4096, progress=False)
hit = (out.argmax(dim=-1) == data.y)[data.test_mask]
print(f"test {100 * hit.float().mean().item():.1f}")

# %%
# PubMed fits a forward pass, so what ``inference`` gives can be compared with it. Features of the
# file are features in 4 bits with a range per row; the model was trained on them.
features = store[None, "x", None]
with torch.no_grad():
    print("the same answers:", torch.equal(out, packed(features, data.edge_index)))

# %%
# What it takes in memory is told by a graph of 2 million nodes and 42 million edges in
# :doc:`/large_graphs`, with other loaders, and models whose layers have to be named.
# :doc:`/features` has all about files: several types of nodes, transforms for other loaders, a
# command that packs a file of NumPy.
