# %%
# Authors, papers, terms and conferences have features of different widths and different strength.
# PyG makes a model for such a graph of an ordinary one, ``quantize`` makes few bits of that, and
# each type has ranges of its own. The data is DBLP; of each author a field is to be guessed.
#
# ``NeighborLoader`` needs pyg-lib or torch-sparse:
# ``python -m pip install --no-build-isolation -e ".[sparse]"``.
import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.datasets import DBLP
from torch_geometric.loader import NeighborLoader
from torch_geometric.nn import GraphSAGE, to_hetero
from torch_geometric.transforms import Constant

import torch_geometric_qlr as qlr

ROOT = "data"
EPOCHS = 20
dataset = DBLP(f"{ROOT}/dblp", transform=Constant(node_types="conference"))
data = dataset[0]
author = data["author"]
classes = int(author.y.max()) + 1
for kind, width in data.num_features.items():
    print(f"{kind:12} {data[kind].num_nodes} nodes, {width} features")

# %%
# A model for each type of edges
# ------------------------------
#
# ``to_hetero`` copies each layer for each type of edges. Widths of -1 are found when the model
# first sees data.
seed_everything(0)
model = to_hetero(GraphSAGE((-1, -1), 64, 2, classes), data.metadata())
with torch.no_grad():
    _ = model(data.x_dict, data.edge_index_dict)

print(qlr.plan(model, bits=4))

# %%
# Bits for a type
# ---------------
#
# Each of these layers can have its own bits. Names are those of the plan, with ``*`` for any part.
# Here what comes from conferences, of which there are few, has eight.
few = {"bits": 4, "overrides": {"*.conference__to__paper*": {"bits": 8}}}
qmodel = qlr.quantize(model, **few)
for entry in qlr.plan(model, **few).entries:
    if entry.name.startswith(("convs.0.term", "convs.0.conference")):
        print(entry.name, entry.points)

# %%
# Training on batches
# -------------------
#
# Nothing in the loop knows of types or bits. A batch has some authors, and what was sampled around
# them. It may lack a type of edges; ranges are then those of other batches.
loader = NeighborLoader(
    data,
    num_neighbors=[10, 10],
    batch_size=128,
    input_nodes=("author", author.train_mask),
    shuffle=True,
)


def train(net):
    optimizer = torch.optim.Adam(qlr.parameter_groups(net, lr=0.005, weight_decay=5e-4))
    for _ in range(EPOCHS):
        net.train()
        for batch in loader:
            optimizer.zero_grad()
            size = batch["author"].batch_size
            out = net(batch.x_dict, batch.edge_index_dict)["author"][:size]
            F.cross_entropy(out, batch["author"].y[:size]).backward()
            optimizer.step()


@torch.no_grad()
def answers(net):
    return net.eval()(data.x_dict, data.edge_index_dict)["author"]


def accuracy(net):
    hit = (answers(net).argmax(dim=-1) == author.y)[author.test_mask]
    return 100 * hit.float().mean().item()


train(model)
train(qmodel)
print(f"float: {accuracy(model):.1f}")
print(f"few bits: {accuracy(qmodel):.1f}")

# %%
# Convert
# -------
#
# All layers compute on packed codes, on the whole graph or on batches.
packed = qlr.convert(qmodel.eval())
print("the same answers:", torch.equal(answers(packed), answers(qmodel)))
batch = next(iter(loader))
with torch.no_grad():
    out = packed(batch.x_dict, batch.edge_index_dict)
    expected = qmodel(batch.x_dict, batch.edge_index_dict)

print("on a batch too:", torch.equal(out["author"], expected["author"]))
print(str(qlr.report(packed)).splitlines()[-1])

# %%
# This is one seed, to show the steps. The accuracy also depends on which authors are labelled, and
# in that the copies of DBLP that are about differ.
#
# ``HeteroConv``, ``HGTConv`` and the RGCN family work in the same way: :doc:`/hetero` says what has
# a range per type, what has one for all, and what has no packed form. :doc:`larger_than_memory`
# keeps features in a file, which can hold several types.
