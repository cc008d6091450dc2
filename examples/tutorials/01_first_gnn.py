# %%
# A graph neural network that computes with two bits, trained on Cora and turned into one that
# holds nothing but packed integers. Nothing is assumed but PyG: the model is
# ``torch_geometric.nn.GCN``, the loop the usual one.
#
# The data
# --------
#
# Cora has 2708 papers that cite each other. Each has a bag of 1433 words, and one of 7 topics to
# guess. It is downloaded into ``ROOT`` when it is not there.
import copy
import os

import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GCN
from torch_geometric.transforms import NormalizeFeatures

import torch_geometric_qlr as qlr

ROOT = "data"
EPOCHS = 120
dataset = Planetoid(ROOT, "Cora", transform=NormalizeFeatures())
data = dataset[0]
print(data.num_nodes, "nodes,", data.num_edges, "edges")

# %%
# Look first
# ----------
#
# ``plan`` says what would happen to each layer of a model, and changes nothing. The column of
# bits is for weights, for what enters a layer (activations), and for the messages along the
# edges; weights of edges have a width of their own, in brackets.
seed_everything(0)
model = GCN(data.num_features, 64, num_layers=2, out_channels=dataset.num_classes, dropout=0.5)
print(qlr.plan(model, bits=2))

# %%
# Quantize and train
# ------------------
#
# ``quantize`` makes a copy that computes as if its numbers had two bits, and passes gradients
# through the rounding. The one new thing is the optimizer: the ranges that numbers are rounded in
# are learned as well, slowly and without weight decay.
qmodel = qlr.quantize(model, bits=2)
optimizer = torch.optim.Adam(qlr.parameter_groups(qmodel, lr=0.01, weight_decay=5e-4))


def train():
    qmodel.train()
    optimizer.zero_grad()
    out = qmodel(data.x, data.edge_index)
    F.cross_entropy(out[data.train_mask], data.y[data.train_mask]).backward()
    optimizer.step()


@torch.no_grad()
def accuracy(net, mask):
    out = net.eval()(data.x, data.edge_index)
    return 100 * (out.argmax(dim=-1) == data.y)[mask].float().mean().item()


# %%
# At two bits the accuracy moves by a point or two from epoch to epoch. The validation nodes say
# which epoch to keep.
best, kept = 0.0, None
for _ in range(EPOCHS):
    train()
    now = accuracy(qmodel, data.val_mask)
    if now > best:
        best, kept = now, copy.deepcopy(qmodel.state_dict())

qmodel.load_state_dict(kept)
print(f"validation {best:.1f}, test {accuracy(qmodel, data.test_mask):.1f}")

# %%
# Convert
# -------
#
# The quantized model keeps its floats, to train on. ``convert`` makes the one to deploy: weights
# are packed codes, and products and sums are of integers. Its answers are those that were just
# measured.
packed = qlr.convert(qmodel)
print(f"test {accuracy(packed, data.test_mask):.1f}")
with torch.no_grad():
    same = torch.equal(packed(data.x, data.edge_index), qmodel(data.x, data.edge_index))

print("the same answers:", same)

# %%
# Save
# ----
#
# A file has the codes, the ranges, and how the model is built.
qlr.save(packed, "cora_int2.safetensors")
torch.save(model.state_dict(), "cora_float.pt")
for name in ("cora_float.pt", "cora_int2.safetensors"):
    print(f"{name:22} {os.path.getsize(name) / 1e3:.0f} kB")

again = qlr.load("cora_int2.safetensors")
print(f"test {accuracy(again, data.test_mask):.1f}")

# %%
# What next
# ---------
#
# :doc:`int8_in_a_minute` does without training, :doc:`two_bits` gets more out of two bits.
# :doc:`/concepts` says what was learned, :doc:`/train` all about the loop, :doc:`/convert` what
# the converted model can do.
