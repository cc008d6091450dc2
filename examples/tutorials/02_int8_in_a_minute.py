# %%
# A trained model goes to 8 bits without any training: it only needs ranges, which a look at some
# data gives. First there has to be a trained model; yours would come from a checkpoint.
import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GraphSAGE
from torch_geometric.transforms import NormalizeFeatures

import torch_geometric_qlr as qlr

ROOT = "data"
EPOCHS = 60
dataset = Planetoid(ROOT, "Cora", transform=NormalizeFeatures())
data = dataset[0]
seed_everything(0)
model = GraphSAGE(data.num_features, 64, 2, dataset.num_classes, dropout=0.5)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
for _ in range(EPOCHS):
    model.train()
    optimizer.zero_grad()
    out = model(data.x, data.edge_index)
    F.cross_entropy(out[data.train_mask], data.y[data.train_mask]).backward()
    optimizer.step()


@torch.no_grad()
def accuracy(net):
    out = net.eval()(data.x, data.edge_index)
    return 100 * (out.argmax(dim=-1) == data.y)[data.test_mask].float().mean().item()


print(f"float: {accuracy(model):.1f}")

# %%
# Three lines
# -----------
#
# ``quantize`` puts quantizers where they belong, ``calibrate`` runs the model on data and chooses
# the ranges of least squared error, ``convert`` packs. Calibration needs no labels; it takes a
# batch, a list of them, or any loader of PyG, and names what no batch has reached.
ready = qlr.quantize(model.eval(), "int8")
found = qlr.calibrate(ready, (data.x, data.edge_index), progress=False)
packed = qlr.convert(ready)
print(found)
print(f"8 bits: {accuracy(packed):.1f}")

# %%
# Where is the noise?
# -------------------
#
# ``report`` looks at each place: its range, how much is clipped, and the ratio of signal to noise
# there and in the output. Some 6 dB are one bit.
print(qlr.report(ready, data.x, data.edge_index))

# %%
# How far does it go?
# -------------------
#
# The same with fewer bits. Where the accuracy breaks, training is needed.
for bits in (8, 4, 3, 2):
    fewer = qlr.quantize(model, bits=bits)
    _ = qlr.calibrate(fewer, (data.x, data.edge_index), progress=False)
    print(f"{bits} bits: {accuracy(qlr.convert(fewer)):.1f}")

# %%
# :doc:`two_bits` trains. :doc:`/train` has the other ways to estimate a range,
# :doc:`/studies/without_training` what calibration costs on more models.
