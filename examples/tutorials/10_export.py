# %%
# A converted model can leave Python: as machine code that calls the packed kernels (``.pt2``),
# or, as a quantized model, in ONNX. Both are checked before they are kept. A GCN on Cora at 4
# bits, trained briefly:
import os

import onnxruntime
import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GCN
from torch_geometric.transforms import NormalizeFeatures

import torch_geometric_qlr as qlr

ROOT = "data"
EPOCHS = 40
dataset = Planetoid(ROOT, "Cora", transform=NormalizeFeatures())
data = dataset[0]
seed_everything(0)
model = GCN(data.num_features, 64, 2, dataset.num_classes, dropout=0.5)
qmodel = qlr.quantize(model, bits=4)
optimizer = torch.optim.Adam(qlr.parameter_groups(qmodel, lr=0.01, weight_decay=5e-4))
for _ in range(EPOCHS):
    qmodel.train()
    optimizer.zero_grad()
    out = qmodel(data.x, data.edge_index)
    F.cross_entropy(out[data.train_mask], data.y[data.train_mask]).backward()
    optimizer.step()

packed = qlr.convert(qmodel.eval())
inputs = (data.x, data.edge_index)

# %%
# AOTInductor
# -----------
#
# Compiling takes a C++ compiler and about a minute. ``COMPILED = False`` writes the program that
# ``torch.export`` traces instead, which calls the same kernels.
COMPILED = True
print(qlr.export(packed, "model.pt2", inputs, compiled=COMPILED))

# %%
# Which sizes may change was found from the example: any number of nodes and of edges. The file
# was loaded again and compared, on this graph, a smaller and a larger one, before it got its
# name. To run it takes torch and one library, not this package:
if COMPILED:
    run = torch._inductor.aoti_load_package("model.pt2")
else:
    run = torch.export.load("model.pt2").module()

with torch.no_grad():
    print("the same answers:", torch.equal(run(*inputs), packed(*inputs)))

# %%
# In a process without this package, or in C++, first load the library of kernels, which lies
# here:
print(os.path.basename(qlr.ops.backend_info()["library"]))

# %%
# :doc:`/export` has the line of Python that does it, and a program in C++.
#
# ONNX
# ----
#
# ONNX has no packed kernels. What is written is the *quantized* model: codes for weights, and a
# pair of ``QuantizeLinear`` and ``DequantizeLinear`` at each quantizer, for a runtime to make use
# of. It takes ``pip install onnx onnxscript onnxruntime``.
print(qlr.export(qmodel, "model.onnx", inputs))

# %%
# Run it, as any ONNX file:
session = onnxruntime.InferenceSession("model.onnx")
(answer,) = session.run(None, {"x": data.x.numpy(), "edge_index": data.edge_index.numpy()})
with torch.no_grad():
    expected = qmodel(*inputs)

hit = torch.from_numpy(answer).argmax(dim=-1) == expected.argmax(dim=-1)
print(f"the same class: {int(hit.sum())} of {len(hit)} nodes")

# %%
# How large are they?
# -------------------
torch.save(model.state_dict(), "float.pt")
for name in ("float.pt", "model.pt2", "model.onnx"):
    print(f"{name:12} {os.path.getsize(name) / 1e3:.0f} kB")

# %%
# The ``.pt2`` of such a small model is nearly all compiled code; the codes of its weights are in
# there as well. :doc:`/export` says how exact and how fast each is, and what is refused.
