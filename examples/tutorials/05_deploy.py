# %%
# From a trained model to the machine where it answers: what it takes in bytes and in time, a file,
# another device, and a check that the machine computes right. The graph is PubMed.
import copy
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GCN
from torch_geometric.transforms import NormalizeFeatures, ToSparseTensor

import torch_geometric_qlr as qlr

ROOT = "data"
EPOCHS = 30
ROUNDS = 15
dataset = Planetoid(ROOT, "PubMed", transform=NormalizeFeatures())
data = dataset[0]
seed_everything(0)
model = GCN(data.num_features, 128, 2, dataset.num_classes, dropout=0.5)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
for _ in range(EPOCHS):
    model.train()
    optimizer.zero_grad()
    out = model(data.x, data.edge_index)
    F.cross_entropy(out[data.train_mask], data.y[data.train_mask]).backward()
    optimizer.step()


@torch.no_grad()
def answers(net):
    return net.eval()(data.x, data.edge_index)


def accuracy(net):
    hit = (answers(net).argmax(dim=-1) == data.y)[data.test_mask]
    return 100 * hit.float().mean().item()


print(f"float: {accuracy(model):.1f}")

# %%
# Four bits, without training again (:doc:`int8_in_a_minute`), and converted. ``report`` says what
# computes each layer; what is not packed, and so gains nothing, has its reason there.
qmodel = qlr.quantize(model.eval(), bits=4)
_ = qlr.calibrate(qmodel, (data.x, data.edge_index), progress=False)
packed = qlr.convert(qmodel)
print(f"4 bits: {accuracy(packed):.1f}")
print(qlr.report(packed))

# %%
# Bytes
# -----
#
# A file has the codes, the ranges, and how the model is built: ``load`` needs nothing else, and
# gives a model whose answers are the same. The features are the larger part. Those that stay the
# same are packed once.
qlr.save(packed, "gcn_int4.safetensors")
torch.save(model.state_dict(), "gcn_float.pt")
loaded = qlr.load("gcn_int4.safetensors")
print("the same answers:", torch.equal(answers(loaded), answers(packed)))

features = qlr.pack_features(packed, data.x)
for name in ("gcn_float.pt", "gcn_int4.safetensors"):
    print(f"{name:26} {Path(name).stat().st_size / 1e3:.0f} kB")

print(f"{'features, float':26} {data.x.nbytes / 1e3:.0f} kB")
print(f"{'features, packed':26} {features.nbytes / 1e3:.0f} kB")

# %%
# Time
# ----
#
# Other programs disturb a measurement. So the candidates take turns, and each has the median of
# its rounds. The first calls do not count: they sort the graph, and look who reads the result of
# each layer. The float model also gets what makes it fastest in PyG: a sparse matrix for its edges,
# and normalisation that is cached, as a converted model has it anyway.
edges = ToSparseTensor()(data.clone()).adj_t
cached = copy.deepcopy(model)
for conv in cached.convs:
    conv.cached = True

candidates = {
    "float": lambda: model(data.x, data.edge_index),
    "float, sparse and cached": lambda: cached(data.x, edges),
    "4 bits": lambda: packed(data.x, data.edge_index),
    "4 bits, packed features": lambda: packed(features, data.edge_index),
}


@torch.no_grad()
def milliseconds(calls):
    times = {name: [] for name in calls}
    for _ in range(ROUNDS + 3):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(found[3:]) for name, found in times.items()}


for name, median in milliseconds(candidates).items():
    print(f"{name:26} {median:.1f} ms")

# %%
# This is one thread of a Xeon with AVX-512, which other programs used as well, and one graph.
# :doc:`/speed` has other machines, stronger peers, and where conversion does not pay.
#
# Threads
# -------
#
# The kernels take the threads of torch, as the float model does. More of them help while there are
# idle cores. Where other programs have those, as they had here, threads wait for each other, and
# two may take longer than one: measure on the machine that it is for. Where each call has a small
# graph, one thread per call and several calls at a time do more: a converted model may run in
# several threads at once.
before = torch.get_num_threads()
for threads in (1, 2):
    torch.set_num_threads(threads)
    medians = milliseconds({"packed": candidates["4 bits, packed features"]})
    print(f"threads {threads}: {medians['packed']:.1f} ms")

torch.set_num_threads(before)

# %%
# A GPU
# -----
#
# A model goes to another device as any other does, before or after it is converted. There the
# kernels are in Triton. Without a GPU, this cell takes the CPU again, and shows nothing new. With
# one, an answer may differ in its last bits, for sums of floats are added up in another order.
device = "cuda" if torch.cuda.is_available() else "cpu"
moved = qlr.load("gcn_int4.safetensors").to(device)
with torch.no_grad():
    out = moved(data.x.to(device), data.edge_index.to(device)).cpu()

agree = (out.argmax(dim=-1) == answers(packed).argmax(dim=-1)).float().mean().item()
print(f"nodes of the same class: {100 * agree:.1f} %")

# %%
# On the target
# -------------
#
# The machine that answers may have another processor, and so other kernels.
# ``python -m torch_geometric_qlr`` says what it has, and compares every kernel there with the
# reference. Its exit status is 1 if one differs, so it can stand in an installation script.
check = subprocess.run(
    [sys.executable, "-m", "torch_geometric_qlr"], capture_output=True, text=True, check=False
)
print("exit status", check.returncode)

# %%
# :doc:`export` makes files that run without this package. :doc:`/convert` says what a converted
# model can do, :doc:`/save` what a file holds and when ``load`` needs the float model, :doc:`/gpu`
# what was checked of GPUs.
