# %%
# Each propagation makes neighbours more alike. Two of them make a good classifier; eight layers of
# a GCN make all nodes the same. Here that is measured on Cora, and avoided by a network that
# propagates as often and stays good, in few bits too.
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GCN
from torch_geometric.transforms import NormalizeFeatures

import torch_geometric_qlr as qlr
from torch_geometric_qlr.metrics import DepthRecorder, mean_average_distance

ROOT = "data"
EPOCHS = 60
dataset = Planetoid(ROOT, "Cora", transform=NormalizeFeatures())
data = dataset[0]


@torch.no_grad()
def answers(net):
    return net.eval()(data.x, data.edge_index)


def fit(net):
    optimizer = torch.optim.Adam(qlr.parameter_groups(net, lr=0.01, weight_decay=5e-4))
    for _ in range(EPOCHS):
        net.train()
        optimizer.zero_grad()
        out = net(data.x, data.edge_index)
        F.cross_entropy(out[data.train_mask], data.y[data.train_mask]).backward()
        optimizer.step()
    hit = (answers(net).argmax(dim=-1) == data.y)[data.test_mask]
    return 100 * hit.float().mean().item()


# %%
# A GCN of growing depth
# ----------------------
#
# The usual model and the usual loop. Only the number of layers differs.


def new_gcn(depth):
    seed_everything(0)
    return GCN(data.num_features, 64, depth, dataset.num_classes, dropout=0.5)


for depth in (2, 4, 8):
    print(f"GCN of {depth} layers: {fit(new_gcn(depth)):.1f}")

# %%
# What is lost
# ------------
#
# ``mean_average_distance`` says how different neighbours are: 0 if all of them point in the same
# direction, whatever their size. ``DepthRecorder`` writes it down after each layer while a model
# runs. This GCN is untrained, for the differences are gone before it could learn from them.
gcn, gcn_depth = new_gcn(16), DepthRecorder({"distance": mean_average_distance})
with gcn_depth.watch(gcn):
    _ = answers(gcn)

# %%
# The propagation of the paper, ``SMP``, has no weights. A step pulls neighbours together, and pulls
# each node back to where it started. Its history has the features after each step.
smp_depth = DepthRecorder({"distance": mean_average_distance})
with torch.no_grad():
    _, history = qlr.nn.SMP(K=16)(data.x, data.edge_index, return_history=True)

for state in history.states:
    smp_depth.record(state, data.edge_index)

for name, recorder in (("GCN", gcn_depth), ("SMP", smp_depth)):
    distances = recorder.to_dict()["distance"]
    print(f"{name}: {distances[0]:.4f} after 1, {distances[-1]:.4f} after 16")

# %%
# The GCN goes down and down. SMP finds its balance after a few steps.
figure, axes = plt.subplots(figsize=(5, 3.2))
for name, recorder, color in (("GCN", gcn_depth, "#d55e00"), ("SMP", smp_depth, "#0072b2")):
    found = recorder.to_dict()
    axes.plot(found["depth"], found["distance"], "o-", color=color, label=name)

axes.set(xlabel="layers or steps", ylabel="distance of neighbours", yscale="log")
axes.legend()
axes.grid(alpha=0.3)
figure.savefig("deep_networks.png", dpi=110, bbox_inches="tight")

# %%
# .. figure:: /results/tutorials/deep_networks.png
#    :alt: Distance of neighbours after each layer of a GCN and after each step of SMP
#    :width: 80%
#
# A network that may be deep
# --------------------------
#
# ``SMPGNN`` is a small network on each node, then steps of SMP. Depth is in the steps, so it costs
# no weights.


def new_smp(depth, propagation="smp"):
    seed_everything(0)
    classes = dataset.num_classes
    return qlr.nn.SMPGNN(data.num_features, 64, classes, K=depth, propagation=propagation)


for depth in (2, 4, 8):
    print(f"SMPGNN of {depth} steps: {fit(new_smp(depth)):.1f}")

# %%
# In few bits
# -----------
#
# ``quantize`` treats the propagation as any other layer. Each step has a range of its own.
print(qlr.plan(new_smp(8), bits=4))

# %%
# The second row is the control. With ``propagation="appnp"`` the same network has PyG's ``APPNP``
# in place of SMP, at half of the cost.
for name, model, bits in (
    ("GCN, 8 layers", new_gcn(8), 4),
    ("with APPNP, 8 steps", new_smp(8, "appnp"), 4),
    ("SMPGNN, 8 steps", new_smp(8), 4),
    ("SMPGNN, 8 steps", new_smp(8), 2),
):
    qmodel = qlr.quantize(model, bits=bits)
    print(f"{name:20} {bits} bits: {fit(qmodel):.1f}")

# %%
# The pull back is what helps, and APPNP has it as well. :doc:`/studies/depth` compares them with
# seeds and up to 64 steps, and finds no difference.
#
# Converted, all steps of the propagation are one operation on packed codes.
packed = qlr.convert(qmodel)
print("the same answers:", torch.equal(answers(packed), answers(qmodel)))
print(qlr.report(packed))

# %%
# One seed, and the last epoch: it says what happens, not how much. :doc:`/smoothness` has the
# formula, ``SmoothPropagation``, which puts the same around the layers of your own model, and more
# to measure.
