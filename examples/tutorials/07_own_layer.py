# %%
# A ``MessagePassing`` of your own is quantized as it is. Here is one, what is done to it, and
# what can be told about it so that it computes on packed integers.
import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric import seed_everything
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import Linear, MessagePassing
from torch_geometric.transforms import NormalizeFeatures
from torch_geometric.utils import degree

import torch_geometric_qlr as qlr

ROOT = "data"
EPOCHS = 60
dataset = Planetoid(ROOT, "Cora", transform=NormalizeFeatures())
data = dataset[0]

# %%
# The layer
# ---------
#
# A node adds to itself its neighbours, damped by their degree and through a learned gate.


class GatedConv(MessagePassing):
    def __init__(self, in_channels, out_channels):
        super().__init__(aggr="add")
        self.lin = Linear(in_channels, out_channels)
        self.gate = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x, edge_index):
        damping = degree(edge_index[0], x.size(0)).clamp(min=1.0).rsqrt()[edge_index[0]]
        x = self.lin(x)
        return x + torch.sigmoid(self.gate) * self.propagate(edge_index, x=x, damping=damping)

    def message(self, x_j, damping):
        return damping.view(-1, 1) * x_j


class Net(nn.Module):
    def __init__(self, in_channels, hidden_channels, out_channels):
        super().__init__()
        self.conv1 = GatedConv(in_channels, hidden_channels)
        self.conv2 = GatedConv(hidden_channels, out_channels)

    def forward(self, x, edge_index):
        h = self.conv1(x, edge_index).relu()
        return self.conv2(F.dropout(h, 0.5, self.training), edge_index)


seed_everything(0)
model = Net(data.num_features, 64, dataset.num_classes)

# %%
# As it is
# --------
#
# Nothing is known of a ``message`` that somebody has written. So each message is quantized, edge
# by edge, which is right for whatever it computes:
print(qlr.plan(model, bits=4))

# %%
# Registered
# ----------
#
# But these messages are copies of the source, times a number per edge. Said so, the source is
# quantized once per node, of which there are fewer, and the sums are of integers:
_ = qlr.register_conv(GatedConv, family="copy")
print(qlr.plan(model, bits=4))

# %%
# The weight ``damping`` has been found by looking at ``message``: it has 8 bits of its own. And
# what was said is not believed blindly. When the layer first computes on codes, its ``message``
# is tried with numbers of all kinds.
#
# Train, convert, check
# ---------------------
qmodel = qlr.quantize(model, bits=4)
optimizer = torch.optim.Adam(qlr.parameter_groups(qmodel, lr=0.01, weight_decay=5e-4))
for _ in range(EPOCHS):
    qmodel.train()
    optimizer.zero_grad()
    out = qmodel(data.x, data.edge_index)
    F.cross_entropy(out[data.train_mask], data.y[data.train_mask]).backward()
    optimizer.step()

packed = qlr.convert(qmodel.eval())
with torch.no_grad():
    out, expected = packed(data.x, data.edge_index), qmodel(data.x, data.edge_index)

print("answers that differ:", int((out != expected).any(dim=-1).sum()))
hit = (out.argmax(dim=-1) == data.y)[data.test_mask]
print(f"test {100 * hit.float().mean().item():.1f}")

# %%
# What computes each layer, ``report`` says; a layer that cannot be packed would stand there with
# its reason:
print(qlr.report(packed))

# %%
# When it is not true
# -------------------
#
# Here somebody registers messages that are no copies. The answers stay right, the layer is
# computed as it stands, and it is said.


class Squares(MessagePassing):
    def __init__(self):
        super().__init__()
        self.lin = Linear(8, 8)

    def forward(self, x, edge_index):
        return self.propagate(edge_index, x=self.lin(x))

    def message(self, x_j):
        return x_j * x_j


_ = qlr.register_conv(Squares, family="copy")
untrue = qlr.quantize(Squares(), bits=4).eval()
x, edge_index = torch.randn(9, 8), torch.randint(9, (2, 30))
with torch.no_grad(), warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    expected = untrue(x, edge_index)
    packed = qlr.convert(untrue)
    print("the same answers:", torch.equal(packed(x, edge_index), expected))

print(said[0].message)
print(qlr.report(packed))

# %%
# :doc:`/custom_layers` has all that can be told: attention, hops, edges that a forward prepares,
# and layers that multiply by a weight without being a ``Linear``.
