# %%
# Not every place of a model needs the same bits. Which needs how many can be measured, and the
# best choice under a budget computed: here for a GAT on Cora.
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GAT
from torch_geometric.transforms import NormalizeFeatures

import torch_geometric_qlr as qlr

ROOT = "data"
EPOCHS = 60
BUDGETS = (2.01, 2.03, 2.06, 2.1, 2.15, 2.2, 2.25, 2.3, 2.35, 2.43)
dataset = Planetoid(ROOT, "Cora", transform=NormalizeFeatures())
data = dataset[0]


def train(net, epochs):
    optimizer = torch.optim.Adam(qlr.parameter_groups(net, lr=0.01, weight_decay=5e-4))
    for _ in range(epochs):
        net.train()
        optimizer.zero_grad()
        out = net(data.x, data.edge_index)
        F.cross_entropy(out[data.train_mask], data.y[data.train_mask]).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(net, mask):
    out = net.eval()(data.x, data.edge_index)
    return 100 * (out.argmax(dim=-1) == data.y)[mask].float().mean().item()


seed_everything(0)
model = GAT(data.num_features, 32, 2, dataset.num_classes, heads=4, dropout=0.5)
train(model, EPOCHS)
print(f"float: {accuracy(model, data.test_mask):.1f}")

# %%
# The search
# ----------
#
# ``search_bits`` rounds one place at a time to each width and looks at the output: that is what a
# width costs there. Then it solves for the choice that costs least within a budget, here of 2.2
# bits on average. It trains nothing, and needs no labels.
choice = qlr.search_bits(
    model, (data.x, data.edge_index), budget=2.2, measure="average_bits", progress=False
)
print(choice)

# %%
# The features of the first Linear are most of all numbers, so they decide the average. They are
# words that are there or not, which two bits hold exactly; the bits that this saves go to the
# other places.
#
# What other budgets buy
# ----------------------
#
# Each point is a search. ``choice.pareto`` has the same for budgets at equal distances, from the
# least that is possible to the most.
found = []
for budget in BUDGETS:
    other = qlr.search_bits(
        model, (data.x, data.edge_index), budget=budget, measure="average_bits", progress=False
    )
    found.append((other.spent, other.error))

bits, cost = zip(*found, strict=True)
figure, axes = plt.subplots(figsize=(5, 3.2))
axes.step(bits, cost, where="post", color="#0072b2", label="best choice for a budget")
axes.plot(bits, cost, ".", color="#0072b2")
axes.set(xlabel="average bits", ylabel="predicted relative error of the output", yscale="log")
axes.axvline(2.2, color="#d55e00", linestyle="--", label="the budget")
axes.legend()
axes.grid(alpha=0.3)
figure.savefig("budget.png", dpi=110, bbox_inches="tight")

# %%
# .. figure:: /results/tutorials/budget.png
#    :alt: Predicted error of the output against average bits, with the budget of 2.2 bits marked
#    :width: 80%
#
# Quantize with it
# ----------------
#
# The choice is a set of overrides. First without training, beside the same bits everywhere, then
# trained on.
for name, config in (
    ("2 bits everywhere", {"bits": 2}),
    ("3 bits everywhere", {"bits": 3}),
    ("2.2 bits on average", {"overrides": choice.overrides}),
):
    qmodel = qlr.quantize(model, **config)
    _ = qlr.calibrate(qmodel, (data.x, data.edge_index), progress=False)
    before = accuracy(qmodel, data.test_mask)
    train(qmodel, EPOCHS)
    print(f"{name}: {before:.1f} calibrated, {accuracy(qmodel, data.test_mask):.1f} trained on")

# %%
# That is one seed: it says what the steps are, not which is better by how much.
# :doc:`/mixed_precision` has budgets in bytes and in operations, and overrides by hand;
# :doc:`/studies` has measured searches.
