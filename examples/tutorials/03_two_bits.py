# %%
# Two bits are four levels. This is what helps a model live with them, on a GCN and Cora: more
# bits for the weights, which are few, and a teacher.
import torch
import torch.nn.functional as F
from torch_geometric import seed_everything
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GCN
from torch_geometric.transforms import NormalizeFeatures

import torch_geometric_qlr as qlr

ROOT = "data"
EPOCHS = 120
SEEDS = 3
dataset = Planetoid(ROOT, "Cora", transform=NormalizeFeatures())
data = dataset[0]

# %%
# The loop is that of :doc:`first_gnn`: the test accuracy of the epoch that is best on the
# validation nodes. New is the teacher. ``distill`` is the cross entropy with its softened
# answers, on *all* nodes: they need no labels.


@torch.no_grad()
def answers(net):
    return net.eval()(data.x, data.edge_index)


def fit(net, teacher=None):
    optimizer = torch.optim.Adam(qlr.parameter_groups(net, lr=0.01, weight_decay=5e-4))
    best = best_test = 0.0
    for _ in range(EPOCHS):
        net.train()
        optimizer.zero_grad()
        out = net(data.x, data.edge_index)
        loss = F.cross_entropy(out[data.train_mask], data.y[data.train_mask])
        if teacher is not None:
            loss = loss + qlr.distill(out, teacher)
        loss.backward()
        optimizer.step()
        hit = (answers(net).argmax(dim=-1) == data.y).float()
        if hit[data.val_mask].mean() > best:
            best, best_test = hit[data.val_mask].mean(), hit[data.test_mask].mean()
    return 100 * float(best_test)


def new_model(seed):
    seed_everything(seed)
    return GCN(data.num_features, 64, 2, dataset.num_classes, dropout=0.5)


# %%
# ``"int2"`` has two bits everywhere. ``"int2-mixed"`` has four for the weights: most bytes are in
# features and messages, so this costs little.
print(qlr.plan(new_model(0), "int2-mixed"))

# %%
# Each row starts from the same weights, once per seed. The float model of a seed is the teacher
# of that seed's last row. The loop keeps the last epoch of the teacher, which is good enough to
# learn from.
rows = {"float": [], "int2": [], "int2-mixed": [], "int2-mixed, teacher": []}
for seed in range(SEEDS):
    teacher = new_model(seed)
    rows["float"].append(fit(teacher))
    rows["int2"].append(fit(qlr.quantize(new_model(seed), "int2")))
    rows["int2-mixed"].append(fit(qlr.quantize(new_model(seed), "int2-mixed")))
    student = qlr.quantize(new_model(seed), "int2-mixed")
    rows["int2-mixed, teacher"].append(fit(student, answers(teacher)))

for name, found in rows.items():
    print(f"{name:20} {sum(found) / len(found):.1f}   ({', '.join(f'{x:.1f}' for x in found)})")

# %%
# The numbers in brackets are the seeds. Three say the direction, not the last point;
# :doc:`/studies/readme_loop` has ten, other models and other data.
#
# :doc:`/recipes` has the presets and when to take which; if two bits are too few in one place of
# your model, :doc:`budget` finds it.
