"""One small constructor and one call for every model of PyG that runs without a download."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg_nn
import torch_geometric.nn.models as models
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn.attention import PolynormerAttention, QFormer, SGFormerAttention
from torch_geometric.nn.models.attract_repel import ARLinkPredictor
from torch_geometric.nn.models.graph_mixer import LinkEncoder
from torch_geometric.nn.models.tgn import IdentityMessage, LastAggregator

from tests.helpers.conv_zoo import DEGREE, EDGE_ATTR, EDGES, FEATURES, HIDDEN, NODES, E, X
from tests.helpers.optional import needs_torch_sparse

F, H, C, N = FEATURES, HIDDEN, 4, NODES
Call = Callable[[Any], Any]
BATCH = torch.tensor([0] * 5 + [1] * (N - 5))
TYPES = torch.arange(N) % 3
EDGE_TYPE = torch.arange(E) % 3
POS, ATOMS = torch.randn(6, 3, generator=torch.Generator().manual_seed(2)), torch.arange(1, 7)
MOLECULE = torch.zeros(6, dtype=torch.long)
PAIRS = torch.combinations(torch.arange(6)).t()
COMPLETE = torch.cat([PAIRS, PAIRS.flip(0)], dim=1)
LABELS, MASK = torch.arange(N) % C, torch.arange(N) % 2 == 0


def _basic(cls: Any, **kwargs: Any) -> tuple[Callable[[], nn.Module], Call]:
    return lambda: cls(F, H, 2, C, **kwargs), lambda m: m(X, EDGES)


def _pna() -> nn.Module:
    return models.PNA(F, H, 2, C, aggregators=["mean", "max"], scalers=["identity"], deg=DEGREE)


def _deep() -> nn.Module:
    def block(kind: str, **kwargs: Any) -> nn.Module:
        return models.DeepGCNLayer(
            pyg_nn.GENConv(H, H), pyg_nn.LayerNorm(H), nn.ReLU(), kind, **kwargs
        )

    layers = [(block(kind), "x, e -> x") for kind in ("res+", "res", "plain")]
    return pyg_nn.Sequential(
        "x, e",
        [(pyg_nn.Linear(F, H), "x -> x"), *layers, (block("res+", ckpt_grad=True), "x, e -> x")],
    )


def _jumping(mode: str) -> tuple[Callable[[], nn.Module], Call]:
    return (
        lambda: models.JumpingKnowledge(mode, channels=F, num_layers=2),
        lambda m: m([X, X + 1]),
    )


class _Gps(nn.Module):
    def __init__(self, attn_type: str) -> None:
        super().__init__()
        self.emb = nn.Embedding(3, F)
        self.convs = nn.ModuleList(
            pyg_nn.GPSConv(
                F,
                pyg_nn.GINEConv(nn.Sequential(nn.Linear(F, F)), edge_dim=EDGE_ATTR.size(1)),
                heads=2,
                attn_type=attn_type,
            )
            for _ in range(2)
        )
        self.head = models.MLP([F, H, C])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.emb(TYPES)
        for conv in self.convs:
            x = conv(x, EDGES, BATCH, edge_attr=EDGE_ATTR)
        return self.head(pyg_nn.global_add_pool(x, BATCH))


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(F, 2, 2 * F, batch_first=True), 2
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x.unsqueeze(0))


class _Meta(nn.Module):
    """What MetaLayer's documentation builds."""

    class Edge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = models.MLP([2 * F + EDGE_ATTR.size(1), H, F])

        def forward(self, src: Tensor, dst: Tensor, edge_attr: Tensor, *_: Any) -> Tensor:
            return self.mlp(torch.cat([src, dst, edge_attr], 1))

    class Node(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Linear(2 * F, H)

        def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, *_: Any) -> Tensor:
            return self.mlp(torch.cat([x[edge_index[1]], edge_attr], 1))

    def __init__(self) -> None:
        super().__init__()
        self.layer = models.MetaLayer(self.Edge(), self.Node())

    def forward(self, x: Tensor) -> Any:
        return self.layer(x, EDGES, EDGE_ATTR)[:2]


def _infomax() -> nn.Module:
    return models.DeepGraphInfomax(
        H,
        pyg_nn.GCNConv(F, H),
        summary=lambda z, *args, **kwargs: z.mean(dim=0).sigmoid(),
        corruption=lambda x, e: (x.flip(0), e),
    )


def _call_renet(model: Any) -> Any:
    event = Data(
        sub=torch.tensor([0]),
        rel=torch.tensor([1]),
        obj=torch.tensor([2]),
        h_sub=torch.tensor([1, 2]),
        h_sub_t=torch.tensor([0, 1]),
        h_obj=torch.tensor([3]),
        h_obj_t=torch.tensor([1]),
    )
    return model(Batch.from_data_list([event, event], follow_batch=["h_sub", "h_obj"]))


def _call_tgn(model: Any) -> Any:
    src, dst = torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])
    model.reset_state()
    model.update_state(src, dst, torch.tensor([1, 2, 3]), torch.ones(3, 5))
    memory = model(torch.arange(6))[0]
    model.detach()
    return memory


def _call_gpse(model: Any) -> Any:
    return model(
        Data(x=X, edge_index=EDGES, batch=BATCH, y=torch.zeros(N, C), y_graph=torch.zeros(2, 2))
    )


ZOO: dict[str, tuple[Callable[[], nn.Module], Call]] = {
    "GCN": _basic(models.GCN, norm="batch_norm", jk="cat", dropout=0.3),
    "GCN residual": _basic(models.GCN, act="elu", act_first=True, norm="graph_norm"),
    "GraphSAGE": _basic(models.GraphSAGE, jk="lstm", norm="layer_norm", project=True),
    "GraphSAGE lstm": _basic(models.GraphSAGE, aggr="lstm"),
    "GIN": _basic(models.GIN, jk="max", norm="pair_norm"),
    "GAT": _basic(models.GAT, heads=2, dropout=0.3),
    "GAT v2": _basic(models.GAT, heads=2, v2=True, norm="instance_norm"),
    "PNA": (_pna, lambda m: m(X, EDGES)),
    "EdgeCNN": _basic(models.EdgeCNN, act="leaky_relu", jk="last"),
    "MLP": (lambda: models.MLP([F, H, C], norm="batch_norm", dropout=0.3), lambda m: m(X)),
    "JumpingKnowledge lstm": _jumping("lstm"),
    "DeepGCN": (_deep, lambda m: m(X, EDGES)),
    "GPS multihead": (lambda: _Gps("multihead"), lambda m: m(X)),
    "GPS performer": (lambda: _Gps("performer"), lambda m: m(X)),
    "Transformer": (_Transformer, lambda m: m(X)),
    "Graph U-Net": (lambda: models.GraphUNet(F, H, C, depth=2), lambda m: m(X, EDGES)),
    "AttentiveFP": (
        lambda: models.AttentiveFP(F, H, C, EDGE_ATTR.size(1), num_layers=2, num_timesteps=2),
        lambda m: m(X, EDGES, EDGE_ATTR, BATCH),
    ),
    "MetaLayer": (_Meta, lambda m: m(X)),
    "SchNet": (
        lambda: models.SchNet(H, H, num_interactions=2, num_gaussians=5),
        lambda m: m(ATOMS, POS, MOLECULE),
    ),
    "DimeNet": (
        lambda: models.DimeNet(
            H, C, 2, 4, num_spherical=2, num_radial=2, output_initializer="glorot_orthogonal"
        ),
        lambda m: m(ATOMS, POS, MOLECULE),
    ),
    "DimeNet++": (
        lambda: models.DimeNetPlusPlus(
            H,
            C,
            1,
            4,
            4,
            4,
            num_spherical=2,
            num_radial=2,
            output_initializer="glorot_orthogonal",
        ),
        lambda m: m(ATOMS, POS, MOLECULE),
    ),
    "ViSNet": (
        lambda: models.ViSNet(
            num_heads=2, num_layers=2, hidden_channels=8, num_rbf=6, vertex=True, derivative=False
        ),
        lambda m: m(ATOMS, POS, MOLECULE)[0],
    ),
    "GNNFF": (lambda: models.GNNFF(H, H, 2), lambda m: m(ATOMS, POS, MOLECULE)),
    "LINKX": (
        lambda: models.LINKX(N, F, H, C, num_layers=2, num_edge_layers=2),
        lambda m: m(X, EDGES),
    ),
    "SignedGCN": (lambda: models.SignedGCN(F, H, 2), lambda m: m(X, EDGES, EDGES.flip(0))),
    "RENet": (lambda: models.RENet(N, 3, H, seq_len=2), _call_renet),
    "LightGCN": (lambda: models.LightGCN(N, H, 2), lambda m: m(EDGES)),
    "DeepGraphInfomax": (_infomax, lambda m: m.loss(*m(X, EDGES))),
    "GAE": (
        lambda: models.GAE(models.GCN(F, H, 2)),
        lambda m: m.recon_loss(m.encode(X, EDGES), EDGES, EDGES.flip(0)),
    ),
    "ARGA": (
        lambda: models.ARGA(models.GCN(F, H, 2), models.MLP([H, H, 1])),
        lambda m: m.reg_loss(m.encode(X, EDGES)),
    ),
    "PMLP": (lambda: models.PMLP(F, H, C, num_layers=2), lambda m: m(X, EDGES)),
    "SGFormer": (
        lambda: models.SGFormer(F, H, C, trans_num_heads=2, gnn_num_layers=2),
        lambda m: m(X, EDGES, BATCH),
    ),
    "Polynormer": (
        lambda: models.Polynormer(F, H, C, local_layers=2, global_layers=1),
        lambda m: m(X, EDGES, BATCH),
    ),
    "LPFormer": (
        lambda: models.LPFormer(F, H),
        lambda m: m(EDGES[:, :5], X, EDGES, torch.full((N, N), 0.1).to_sparse()),
    ),
    "GroupAddRev": (
        lambda: models.GroupAddRev(pyg_nn.SAGEConv(F // 2, F // 2), num_groups=2),
        lambda m: m(X.clone().requires_grad_(), EDGES),
    ),
    "MaskLabel": (lambda: models.MaskLabel(C, F), lambda m: m(X, LABELS, MASK)),
    "TGNMemory": (
        lambda: models.TGNMemory(6, 5, H, 3, IdentityMessage(5, H, 3), LastAggregator()),
        _call_tgn,
    ),
    "NeuralFingerprint": (
        lambda: models.NeuralFingerprint(F, H, C, 2),
        lambda m: m(X, EDGES, BATCH),
    ),
    "RECT_L": (lambda: models.RECT_L(F, H), lambda m: m(X, EDGES)),
    "ARLinkPredictor": (lambda: ARLinkPredictor(F, H), lambda m: m(X, EDGES)),
    "GraphMixer": (
        lambda: LinkEncoder(3, EDGE_ATTR.size(1), H, C, 4),
        lambda m: m(EDGES, EDGE_ATTR, torch.arange(E).float(), torch.full((N,), 100.0)),
    ),
    "GPSE": (
        lambda: models.GPSE(
            F, C, 8, layers_mp=2, num_node_targets=C, num_graph_targets=2, multi_head_dim_inner=4
        ),
        _call_gpse,
    ),
    "GPSENodeEncoder": (
        lambda: models.GPSENodeEncoder(F, F, 4, dim_in=F, expand_x=True),
        lambda m: m(X, X),
    ),
    "TransE": (lambda: pyg_nn.TransE(N, 3, H), lambda m: m(EDGES[0], EDGE_TYPE, EDGES[1])),
    "ComplEx": (lambda: pyg_nn.ComplEx(N, 3, H), lambda m: m(EDGES[0], EDGE_TYPE, EDGES[1])),
    "DistMult": (lambda: pyg_nn.DistMult(N, 3, H), lambda m: m(EDGES[0], EDGE_TYPE, EDGES[1])),
    "RotatE": (lambda: pyg_nn.RotatE(N, 3, H), lambda m: m(EDGES[0], EDGE_TYPE, EDGES[1])),
    "QFormer": (lambda: QFormer(F, H, C, 2, 1), lambda m: m(X.unsqueeze(0))),
    "SGFormerAttention": (lambda: SGFormerAttention(F, 2, H), lambda m: m(X.unsqueeze(0))),
    "PolynormerAttention": (lambda: PolynormerAttention(F, 2, H), lambda m: m(X.unsqueeze(0))),
    "DenseGCNConv": (lambda: pyg_nn.DenseGCNConv(F, H), lambda m: m(X, torch.ones(N, N))),
    "DenseGraphConv": (lambda: pyg_nn.DenseGraphConv(F, H), lambda m: m(X, torch.ones(N, N))),
    "DenseSAGEConv": (lambda: pyg_nn.DenseSAGEConv(F, H), lambda m: m(X, torch.ones(N, N))),
    "DenseGINConv": (
        lambda: pyg_nn.DenseGINConv(nn.Linear(F, H)),
        lambda m: m(X, torch.ones(N, N)),
    ),
    "DenseGATConv": (
        lambda: pyg_nn.DenseGATConv(F, H, heads=2),
        lambda m: m(X, torch.ones(N, N)),
    ),
    "DMoNPooling": (
        lambda: pyg_nn.DMoNPooling(F, 3),
        lambda m: m(X, torch.ones(N, N))[1:],
    ),
}


#: Layers that a forward does not reach, and so never see a tensor.
UNREACHED: dict[str, str] = {
    "SignedGCN": r"lin\.",  # scores edges, in another method
    "PMLP": r"conv\.",  # propagates in evaluation only
    "Polynormer": r"(lin_in|global_attn|pred_global)",  # switched on later in training
    "NeuralFingerprint": r"convs\.\d\.lins_.*\.input",  # one Linear per degree, not all occur
    "QFormer": r"encoder_layer\.",  # a template of which the model holds copies
}


NEED_TORCH_SPARSE = {"DimeNet", "DimeNet++", "GNNFF"}


def params(names: Iterable[str]) -> list[Any]:
    """Names of the zoo to parametrize with, skipped where PyG needs a package for the model."""
    return [
        pytest.param(name, marks=needs_torch_sparse if name in NEED_TORCH_SPARSE else ())
        for name in names
    ]


@pytest.fixture
def complete_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Molecules of six atoms, all within reach of each other; the search itself needs a package."""
    for name in ("dimenet", "gnnff", "schnet", "visnet"):
        monkeypatch.setattr(f"torch_geometric.nn.models.{name}.radius_graph", _radius_graph)


def _radius_graph(pos: Tensor, loop: bool = False, **kwargs: Any) -> Tensor:
    loops = torch.arange(6).repeat(2, 1)
    return torch.cat([COMPLETE, loops], dim=1) if loop else COMPLETE
