"""Bad input to the public face: an error of this package that says where, what, and what to do.

What ``quantize``, ``plan``, ``convert`` and calls of a model refuse besides is in
``transforms/test_errors.py`` and ``test_input_errors.py``, what files are refused in ``io``.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GCN, MessagePassing

import torch_geometric_qlr as qlr
from torch_geometric_qlr import QLRConfig
from torch_geometric_qlr import parameter_groups as groups
from torch_geometric_qlr import register_conv as conv
from torch_geometric_qlr import register_linear as linear
from torch_geometric_qlr.errors import AlreadyQuantizedError as Already
from torch_geometric_qlr.errors import (
    BackendError,
    CheckpointError,
    ConfigError,
    InputError,
)
from torch_geometric_qlr.errors import NothingToQuantizeError as Nothing
from torch_geometric_qlr.errors import UnsupportedLayerError as Unsupported
from torch_geometric_qlr.loader import GatherFeatures, PackedFeatureStore
from torch_geometric_qlr.metrics import (
    dirichlet_energy,
    edge_weight_error,
    layer_sqnr,
    mean_average_distance,
    smoothness_change,
    sqnr,
)
from torch_geometric_qlr.nn import EMP, SMP, SMPGNN
from torch_geometric_qlr.nn.registry import conv_specs
from torch_geometric_qlr.tensor import PackedTensor
from torch_geometric_qlr.transforms import Compose, PackFeatures, SmoothPropagation

_seeded = torch.Generator().manual_seed(0)
X = torch.rand(6, 4, generator=_seeded)
E = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
FAR = torch.tensor([[0, 9], [1, 2]])
NAN = X.clone()
NAN[1, 2] = float("nan")
ONE, ZERO = torch.tensor(0.1), torch.tensor(0.0)
PACKED = PackedTensor.from_float(X, ONE, ZERO, 4)
SIZE, ROWS, COL = PACKED.num_cols, torch.tensor([0, 1]), torch.tensor([0])
from_float, from_codes = PackedTensor.from_float, PackedTensor.from_codes
OPS: Any = torch.ops.qlr
ANY: Any = 3  # what no signature allows


class Layer(MessagePassing):
    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> Any:
        return self.propagate(edge_index, x=x)

    def message(self, x_j: torch.Tensor) -> torch.Tensor:
        return x_j


class Weighted(nn.Module):
    pass


FLOAT = GCN(4, 6, num_layers=2, out_channels=3)
QUANTIZED = qlr.quantize(FLOAT, bits=4).eval()
QUANTIZED(X, E)
CONVERTED = qlr.convert(QUANTIZED)
MODELS: tuple[nn.Module, ...] = (FLOAT, QUANTIZED, CONVERTED)
RAW = io.BytesIO()
qlr.save(CONVERTED, RAW)
#: A path that is not there, and that nothing may be written to.
PATH = "/nowhere/features.safetensors"


def calibrating(model: Any, **options: Any) -> None:
    with qlr.calibrating(model, **options):
        model(X, E)


def calibrate(data: Any = (X, E), model: Any = QUANTIZED, **options: Any) -> Any:
    return qlr.calibrate(model, data, progress=False, **options)


def search(budget: Any = 300.0, data: Any = (X, E), model: Any = FLOAT, **options: Any) -> Any:
    return qlr.search_bits(model, data, budget, progress=False, **options)


def write(x: Any, **options: Any) -> None:
    PackedFeatureStore.write(options.pop("path", PATH), x, **options)


def load(*args: Any, **options: Any) -> Any:
    return qlr.load(io.BytesIO(RAW.getvalue()), *args, **options)


Case = tuple[Callable[[], Any], type[Exception], str]

CONFIGS: dict[str, Case] = {
    "list": (lambda: qlr.plan(FLOAT, [4]), ConfigError, "a list; expected a QLRConfig"),
    "object": (lambda: qlr.plan(FLOAT, object()), ConfigError, "a number of bits or the name"),
    "method": (lambda: qlr.plan(FLOAT, 4, method="gone"), ConfigError, "x .source.*'lsq'"),
    "method kind": (lambda: QLRConfig(method=ANY), ConfigError, "3 is no name; choose a method"),
    "edge weight bits": (lambda: QLRConfig(edge_weight_bits=1), ConfigError, "choose 2 to 8"),
    "output bits": (lambda: QLRConfig(output_bits=12), ConfigError, "output_bits=12 is out"),
    "truncations": (lambda: QLRConfig(truncation=["bt"]), ConfigError, r"choose one of None, 'bt'"),
    "granularity": (lambda: QLRConfig(granularity=ANY), ConfigError, "a dict of names by role"),
    "of weights": (
        lambda: QLRConfig(granularity={"weight": "node"}),
        ConfigError,
        r"granularity\['weight'\]='node' is unknown; choose one of 'tensor', 'channel'",
    ),
    "points": (lambda: QLRConfig(points=ANY), ConfigError, r"such as points=\('weight',\)"),
    "no points": (lambda: QLRConfig(points=()), ConfigError, "choose at least one of input"),
    "momentum": (lambda: QLRConfig(momentum=0), ConfigError, "choose 0 < momentum <= 1"),
    "momentum kind": (lambda: QLRConfig(momentum="x"), ConfigError, "momentum='x' is out"),
    "momentum nan": (lambda: QLRConfig(momentum=float("nan")), ConfigError, "momentum=nan"),
    "preset kind": (
        lambda: QLRConfig(preset=ANY),
        ConfigError,
        "3 is unknown; choose one of 'int8",
    ),
    "input gain": (lambda: QLRConfig(input_gain=ANY), ConfigError, "input_gain=3.*True or False"),
    "search": (lambda: QLRConfig(search=ANY), ConfigError, "search=3 is no choice"),
    "zero aligned": (lambda: QLRConfig(zero_aligned=ANY), ConfigError, "True or False"),
    "override bits": (
        lambda: QLRConfig(overrides={"a": {"bits": 99}}),
        ConfigError,
        "bits=99 is out of range",
    ),
    "override preset": (
        lambda: QLRConfig(overrides={"a": "int99"}),
        ConfigError,
        "override 'a' is 'int99'; expected a dict.*None to keep",
    ),
    "override name": (
        lambda: QLRConfig(overrides={"": None}),
        ConfigError,
        "neither a module name, a pattern nor a type",
    ),
    "of another layer": (
        lambda: qlr.plan(FLOAT, 4, overrides={"convs.9": None}),
        ConfigError,
        r"override 'convs\.9' matches no layer.*Nearest: convs\.1",
    ),
    "dict version": (lambda: QLRConfig.from_dict({"bits": 4}), ConfigError, "version None.*anew"),
    "dict field": (
        lambda: QLRConfig.from_dict({**QLRConfig().to_dict(), "bit": 1}),
        ConfigError,
        "'bit' is not a config field. Did you mean 'bits'",
    ),
}

RANGES: dict[str, Case] = {
    "float": (lambda: calibrate(model=FLOAT), Nothing, "Call qlr.quantize first"),
    "converted": (lambda: calibrate(model=CONVERTED), Already, "ranges are final"),
    "no model": (lambda: calibrate(model=None), Unsupported, "calibrate: .*the model it"),
    "a class": (lambda: calibrating(GCN), Unsupported, "got class GCN"),
    "calibrating float": (lambda: calibrating(FLOAT), Nothing, "it has no ranges"),
    "no data": (lambda: calibrate(None), ConfigError, "a NoneType; pass a loader"),
    "data kind": (lambda: calibrate(3), ConfigError, "a int; pass a loader, a list of batches"),
    "data name": (lambda: calibrate("cora"), ConfigError, "a str; pass a loader"),
    "no batch": (lambda: calibrate([]), ConfigError, "calibrate: there is no batch"),
    "method": (
        lambda: calibrate(method="max"),
        ConfigError,
        "'max' is unknown, choose from minmax",
    ),
    "share": (lambda: calibrate(method="percentile", share=2.0), ConfigError, "share is 2.0; a ra"),
    "share kind": (lambda: calibrate(share="x"), ConfigError, "share is 'x'; choose a finite"),
    "calibrating share": (lambda: calibrating(QUANTIZED, share=0.1), ConfigError, "more than half"),
    "forward": (lambda: calibrate(forward=3), ConfigError, "such as forward=lambda model, batch"),
    "resume": (lambda: calibrate(resume=3), ConfigError, "resume is a int; pass what calibrate"),
    "not a number": (
        lambda: calibrate((NAN, E)),
        InputError,
        r"convs\.0\..*: the tensor to quantize holds NaN",
    ),
    "search none": (lambda: search(model=None), Unsupported, "Pass the model itself"),
    "search quantized": (lambda: search(model=QUANTIZED), Already, r"convs\.0: .*onc"),
    "budget": (lambda: search("x"), ConfigError, "search_bits: budget is 'x'; expected a number"),
    "budget nan": (lambda: search(float("nan")), ConfigError, "budget is nan"),
    "budget too small": (lambda: search(1), ConfigError, "too small: this model takes from.*Raise"),
    "widths": (lambda: search(bits=(9,)), ConfigError, r"bits is \(9,\); expected widths from 1"),
    "no widths": (lambda: search(bits=()), ConfigError, r"such as \(2, 4, 8\)"),
    "measure": (lambda: search(measure="flops"), ConfigError, "choose from bytes, bitops"),
    "search data": (lambda: search(data=None), ConfigError, "a NoneType; pass a loader"),
    "search no batch": (lambda: search(data=[]), ConfigError, "search_bits: there is no batch"),
    "search forward": (lambda: search(forward=3), ConfigError, "forward is 3; it is a function"),
    "search field": (lambda: search(bit=3), ConfigError, "'bit' is not a config field"),
    "report nan": (lambda: qlr.report(QUANTIZED, NAN, E), InputError, "Look at its weights and at"),
    "report converted": (lambda: qlr.report(CONVERTED, X, E), Already, "no floats to"),
}

TRAINING: dict[str, Case] = {
    "lr": (lambda: groups(QUANTIZED, lr=-1), ConfigError, "lr=-1 is out.*0 or more"),
    "lr nan": (lambda: groups(QUANTIZED, lr=float("nan")), ConfigError, "lr=nan"),
    "lr kind": (lambda: groups(QUANTIZED, lr="x"), ConfigError, "'x' is no number"),
    "decay": (
        lambda: groups(QUANTIZED, lr=0.1, weight_decay=-1),
        ConfigError,
        "weight_decay=-1 is out",
    ),
    "range lr": (
        lambda: groups(QUANTIZED, lr=0.1, range_lr=-1),
        ConfigError,
        "range_lr=-1 is out of range",
    ),
    "groups": (lambda: qlr.parameter_groups(ANY, lr=0.1), Unsupported, "groups: .*got int"),
    "ranges": (lambda: qlr.quant_parameters(ANY), Unsupported, "quant_parameters: expec"),
    "weights": (lambda: qlr.weight_parameters(ANY), Unsupported, "weight_parameters: exp"),
    "shape": (lambda: qlr.distill(X, X[:3]), InputError, r"\[6, 4\].*\[3, 4\]; both are \[N, C\]"),
    "one row": (
        lambda: qlr.distill(X[0], X[0]),
        InputError,
        r"both are \[N, C\], of the same nodes",
    ),
    "temperature": (lambda: qlr.distill(X, X, 0), InputError, "temperature=0 .*more than 0"),
    "temperature nan": (lambda: qlr.distill(X, X, float("nan")), InputError, "choose more than 0"),
    "temperature kind": (lambda: qlr.distill(X, X, "x"), InputError, "'x' is out of range"),
    "classes": (
        lambda: qlr.distill(X, X.long()),
        InputError,
        "logits, floats of shape.*not classes",
    ),
    "no teacher": (
        lambda: qlr.distill(X, ANY),
        InputError,
        "distill: teacher is a int; pass a tens",
    ),
    "array": (lambda: qlr.distill(X.numpy(), X), InputError, r"out is a ndarray.*torch\.as_tensor"),
}

FEATURES: dict[str, Case] = {
    "float": (lambda: qlr.pack_features(FLOAT, X), Nothing, "convert the model first"),
    "no model": (lambda: qlr.pack_features(ANY, X), Unsupported, "pack_features: .*got int"),
    "array": (lambda: qlr.pack_features(CONVERTED, ANY), InputError, r"floats \[N, F\], got int"),
    "row": (lambda: qlr.pack_features(CONVERTED, X[0]), InputError, r"a matrix of floats \[N, F\]"),
    "integers": (lambda: qlr.pack_features(CONVERTED, X.long()), InputError, "got torch.int64"),
    "nan": (
        lambda: qlr.pack_features(CONVERTED, NAN),
        InputError,
        r"lin\.input: .*x\[1, 2\] is nan",
    ),
    "sparse": (lambda: qlr.pack_features(CONVERTED, X.to_sparse()), InputError, "a dense tensor"),
    "bits": (lambda: PackFeatures(9), ConfigError, "bits must be an integer from 1 to 8, got 9"),
    "bits kind": (lambda: PackFeatures("4"), ConfigError, "from 1 to 8, got '4'"),
    "no bits": (lambda: PackFeatures(None), ConfigError, "from 1 to 8, got None"),
    "granularity": (lambda: PackFeatures(4, "row"), ConfigError, "choose one of 'node', 'feature'"),
    "attributes": (
        lambda: PackFeatures(attrs=ANY),
        ConfigError,
        r"name attributes, such as \('x',",
    ),
    "attribute kinds": (lambda: PackFeatures(attrs=(ANY,)), ConfigError, r"attrs is \(3,\)"),
    "tensor": (lambda: PackFeatures()(X), InputError, r"got Tensor.*PackedTensor\.from_float"),
    "nothing": (lambda: PackFeatures()(None), InputError, "Expected a Data or HeteroData"),
    "no features": (lambda: PackFeatures()(Data(edge_index=E)), Nothing, "attrs="),
    "data nan": (lambda: PackFeatures()(Data(x=NAN)), InputError, r"PackFeatures: x: .*x\[1, 2\]"),
    "data integers": (lambda: PackFeatures()(Data(x=X.long())), InputError, r"Cast them: x\.float"),
    "data row": (lambda: PackFeatures()(Data(x=X[0])), InputError, r"\[N, F\], not of shape \[4\]"),
    "no packed": (lambda: GatherFeatures()(Data(x=X)), InputError, "Pack them with PackFeatures"),
    "gather none": (lambda: GatherFeatures()(None), InputError, "Expected a Data or HeteroData"),
    "gather store": (
        lambda: GatherFeatures(ANY),
        InputError,
        "a int; pass a feature store, such as",
    ),
    "no sample": (
        lambda: GatherFeatures()(Data(x=PACKED)),
        InputError,
        "has no n_id.*a loader that samples",
    ),
    "no sample of a type": (
        lambda: GatherFeatures()(HeteroData({"paper": {"x": PACKED}})),
        InputError,
        "The batch's 'paper' has no n_id",
    ),
    "store path": (lambda: PackedFeatureStore(ANY), InputError, "3 is no path: pass text"),
    "store empty path": (lambda: PackedFeatureStore(""), InputError, "'' is no path"),
    "write path": (lambda: write(X, path=3), InputError, "3 is no path: pass text"),
    "write none": (lambda: write(None), InputError, "NoneType holds no rows. Pass a tensor"),
    "write nothing": (lambda: write({}), InputError, "there are no features"),
    "write bits": (lambda: write(X, bits=0), ConfigError, "from 1 to 8, got 0"),
    "write granularity": (lambda: write(X, granularity="x"), ConfigError, "choose one of 'node'"),
    "write model": (lambda: write(X, model=FLOAT), Nothing, "convert the model first"),
    "write model kind": (lambda: write(X, model=3), Unsupported, "Pass the model itself"),
    "write ranges": (
        lambda: write(X, ranges=3, granularity="tensor"),
        InputError,
        r"ranges is 3; it is a pair \(lo, hi\)",
    ),
    "write range kinds": (
        lambda: write(X, ranges=("a", "b"), granularity="tensor"),
        InputError,
        "of numbers or of tensors with one for each column",
    ),
    "write both": (lambda: write(X, bits=4, model=CONVERTED), ConfigError, "leave them out"),
}

LAYERS: dict[str, Case] = {
    "conv object": (lambda: conv(Layer()), Unsupported, "no MessagePassing"),
    "no conv": (lambda: conv(ANY), Unsupported, "got 3.*register_linear"),
    "family": (lambda: conv(Layer, family=ANY), ConfigError, "Layer: family 3 .*'copy'"),
    "source": (lambda: conv(Layer, sources=("y",)), Unsupported, r"\('x',\)"),
    "source text": (lambda: conv(Layer, sources="x"), ConfigError, "tuple of names"),
    "source kind": (lambda: conv(Layer, sources=ANY), ConfigError, "sources is 3; it is"),
    "logits": (lambda: conv(Layer, logit_sources=ANY), ConfigError, "logit_sources is"),
    "weights": (lambda: conv(Layer, weights=ANY), ConfigError, "weights={'weight': -1}"),
    "channels": (lambda: conv(Layer, weights={"w": 5}), ConfigError, "one of 0, -1"),
    "hops": (lambda: conv(Layer, hops=ANY), ConfigError, r"such as hops=lambda layer"),
    "hop kinds": (lambda: conv(Layer, hop_kinds=ANY), ConfigError, "hop_kinds=lambda"),
    "forward": (lambda: conv(Layer, forward=ANY), ConfigError, r"a qlr\.nn\.ForwardF"),
    "message": (lambda: conv(Layer, message=ANY), ConfigError, r"a qlr\.nn\.MessageF"),
    "argument": (lambda: conv(Layer, first_argument=ANY), ConfigError, "'features', 'a"),
    "no linear": (lambda: linear(ANY), Unsupported, r"no torch\.nn\.Module"),
    "linear weight": (lambda: linear(Weighted, weight=ANY), ConfigError, "name of a pa"),
    "linear channels": (
        lambda: linear(Weighted, channel_dim=2),
        ConfigError,
        "channel dimension 2 is unknown; choose one of 0, -1",
    ),
    "smp K": (lambda: SMP(K=-1), ConfigError, "SMP: K is -1; the number of steps"),
    "smp K kind": (lambda: SMP(K=1.5), ConfigError, "SMP: K is 1.5; .*an integer"),
    "smp eta": (lambda: SMP(eta="x"), ConfigError, "SMP: eta is 'x'; choose a finite number"),
    "smp mu": (lambda: SMP(mu=float("nan")), ConfigError, "SMP: mu is nan; choose a finite"),
    "smp projection": (lambda: SMP(projection=ANY), ConfigError, "projection is 3; choose one of"),
    "smp primal": (lambda: SMP(primal=ANY), ConfigError, r"primal is 3; choose one of \['paper'"),
    "smp x": (lambda: SMP(K=2)(ANY, E), InputError, "SMP: x is a int, it must be one tensor"),
    "smp integers": (lambda: SMP(K=2)(X.long(), E), InputError, r"\[num_nodes, num_features\]"),
    "smp edges": (
        lambda: SMP(K=2)(X, E.float()),
        InputError,
        r"edge_index has .*\[2, E\] of integ",
    ),
    "smp no edges": (lambda: SMP(K=2)(X, ANY), InputError, "int is no adjacency. Pass edge_index"),
    "smp weights": (
        lambda: SMP(K=2)(X, E, X[0, :3]),
        InputError,
        "3 entries for 4 edges. Pass one",
    ),
    "emp K": (lambda: EMP(K=-1), ConfigError, "EMP: K is -1"),
    "emp lambda": (lambda: EMP(lambda1=-1), ConfigError, "EMP: lambda1 is -1; .*0 or more"),
    "emp norm": (lambda: EMP(norm=ANY), ConfigError, "EMP: norm is 3; choose one of"),
    "emp x": (lambda: EMP(K=2)(X[0], E), InputError, r"EMP: x has shape \[4\]"),
    "smpgnn": (lambda: SMPGNN(4, 4, 3, num_layers=0), ConfigError, "num_layers is 0; it must be 1"),
    "smpgnn kind": (lambda: SMPGNN(4, 4, 3, propagation=ANY), ConfigError, r"one of \['smp', 'emp"),
    "smpgnn dropout": (lambda: SMPGNN(4, 4, 3, dropout=2.0), ConfigError, "a probability, 0 to 1"),
    "smooth": (lambda: SmoothPropagation()(nn.ReLU()), Unsupported, "Pass a model with n"),
    "smooth option": (lambda: SmoothPropagation(mu="x"), ConfigError, "mu is 'x'; choose"),
    "compose": (lambda: Compose(ANY), ConfigError, r"such as \[Quantize\(bits=4\)\]"),
    "compose kinds": (lambda: Compose([ANY]), ConfigError, r"\[3\] is no list of transforms"),
}

NUMBERS: dict[str, Case] = {
    "energy x": (lambda: dirichlet_energy(ANY, E), InputError, "dirichlet_energy: x is a int"),
    "energy row": (lambda: dirichlet_energy(X[0], E), InputError, r"floats of shape \[N, F"),
    "energy integers": (lambda: dirichlet_energy(X.long(), E), InputError, "pass floats"),
    "energy edges": (lambda: dirichlet_energy(X, ANY), InputError, "int is no adjacency"),
    "energy node": (lambda: dirichlet_energy(X, FAR), InputError, "the node 9, and x has 6"),
    "distance row": (lambda: mean_average_distance(X[0]), InputError, r"shape \[N, F\]"),
    "distance node": (lambda: mean_average_distance(X, -E), InputError, "has the node -4"),
    "change": (lambda: smoothness_change([X], E), InputError, "two or more representations"),
    "sqnr": (lambda: sqnr(X, X[:2]), InputError, "must hold the same values"),
    "sqnr kind": (lambda: sqnr(X, ANY), InputError, "sqnr: approximation is a int; pass a"),
    "layers": (lambda: layer_sqnr(ANY, FLOAT, X, E), Unsupported, "Pass the model"),
    "layers differ": (
        lambda: layer_sqnr(FLOAT, GCN(4, 6, 1), X, E),
        InputError,
        r"\['convs\.0', 'convs\.1'\] and \['convs\.0'\].*its quantized twin",
    ),
    "no edge weights": (lambda: edge_weight_error(E), InputError, r"gcn_edges\(edge_index\)"),
    "no graph": (lambda: edge_weight_error(ANY), InputError, "int is no adjacency"),
    "scale": (lambda: from_float(X, ANY, ZERO, 4), InputError, "scale is a int; pass"),
    "scale shape": (lambda: from_float(X, X[0, :3], ZERO, 4), InputError, "per column"),
    "bits text": (lambda: from_float(X, ONE, ZERO, "4"), ConfigError, "8, got '4'"),
    "x": (lambda: from_float(ANY, ONE, ZERO, 4), InputError, "x is a int; pass a tens"),
    "x row": (lambda: from_float(X[0], ONE, ZERO, 4), InputError, "a dense matrix"),
    "x integers": (lambda: from_float(X.long(), ONE, ZERO, 4), InputError, "from_codes"),
    "x nan": (lambda: from_float(NAN, ONE, ZERO, 4), InputError, r"x\[1, 2\] is nan"),
    "codes": (lambda: from_codes(X, ONE, ZERO, 4), InputError, "codes must be uint8"),
    "codes kind": (lambda: from_codes(ANY, ONE, ZERO, 4), InputError, "codes is a int"),
    "columns": (
        lambda: PackedTensor(PACKED.data, 400, 4, ONE, ZERO),
        InputError,
        "for 400 columns",
    ),
    "rows": (lambda: PACKED[1, 2], InputError, "for arbitrary rows use index_select"),
    "index": (
        lambda: PACKED.index_select(torch.tensor([9])),
        InputError,
        "an index is out of range",
    ),
    "index list": (lambda: PACKED.index_select([1]), InputError, r"index is a list; pass a tensor"),
    "state": (lambda: PackedTensor.from_state({}), CheckpointError, "missing; the file is damaged"),
    "op bits": (lambda: OPS.quantize_pack(X, ONE, ZERO, 9), ConfigError, "from 1 to 8, got 9"),
    "op integers": (
        lambda: OPS.quantize_pack(X.long(), ONE, ZERO, 4),
        InputError,
        r"qlr\.quantize_p",
    ),
    "op codes": (lambda: OPS.pack(X, 4), InputError, r"qlr\.pack: codes is torch\.float32"),
    "op none": (lambda: OPS.pack(None, 4), InputError, "codes is None, it must be a tensor"),
    "op columns": (
        lambda: OPS.unpack(PACKED.data, 999, 4),
        InputError,
        "for 999 columns at 4 bits",
    ),
    "op no columns": (lambda: OPS.unpack(PACKED.data, -1, 4), InputError, "from 0 to .*got -1"),
    "op edges": (lambda: OPS.csr(E.float(), 6, 6), InputError, "it must be int32 or int64"),
    "op nodes": (lambda: OPS.csr(E, 2, 6), InputError, "there are 2. Check the number of rows"),
    "op rows": (lambda: OPS.spmm(ROWS.flip(0), COL, X), InputError, "rowptr must ascend from 0"),
    "op col": (lambda: OPS.spmm(ROWS, COL + 7, X), InputError, "an index is out of range"),
    "op reduce": (
        lambda: OPS.spmm(ROWS, COL, X, reduce="max"),
        ConfigError,
        "'sum' or 'mean', got",
    ),
    "op weights": (
        lambda: OPS.quantize_edges(ROWS, COL, X[0]),
        InputError,
        "4 elements .*expected 1",
    ),
    "op scale": (lambda: OPS.fake_quantize(X, X[0, :3], ZERO, 4), InputError, "per tensor, "),
}

FILES: dict[str, Case] = {
    "load kind": (lambda: load(ANY), Unsupported, r"qlr\.load\(path, model\)"),
    "load class": (lambda: load(GCN), Unsupported, "not its class or its state_dict"),
    "load back end": (
        lambda: load(FLOAT, backend="x"),
        BackendError,
        "choose from auto, reference",
    ),
    "load trust": (lambda: load(trust="my_package"), ConfigError, r'trust=\("my_package",\)'),
    "load quantized": (
        lambda: load(qlr.quantize(FLOAT, bits=2)),
        Already,
        r"convs\.0.* 2 bits, that of the file 4.*Pass the float model",
    ),
    "load wider": (
        lambda: load(GCN(4, 7, num_layers=2, out_channels=3)),
        CheckpointError,
        r"convs\.0\.lin\.weight: .*\[6, 4\], the model one of \[7, 4\]",
    ),
    "load other option": (
        lambda: load(GCN(4, 6, num_layers=2, out_channels=3, act="elu")),
        CheckpointError,
        "act: the file has ReLU there, the model ELU",
    ),
    "load nothing": (lambda: qlr.load(io.BytesIO()), CheckpointError, "cannot be read"),
    "save nothing": (lambda: qlr.save(ANY, PATH), Unsupported, "The order is qlr.save"),
}

_GROUPS = {"config": CONFIGS, "ranges": RANGES, "training": TRAINING, "features": FEATURES}
_GROUPS |= {"layers": LAYERS, "numbers": NUMBERS, "files": FILES}
CASES = {f"{group}: {n}": case for group, cases in _GROUPS.items() for n, case in cases.items()}


def snapshot() -> list[Any]:
    """All that a call might have changed."""
    modules = [[(n, type(m), m.training) for n, m in model.named_modules()] for model in MODELS]
    return [modules, sorted(conv_specs())]


STATES = [copy.deepcopy(model.state_dict()) for model in MODELS]
TENSORS = [t.clone() for t in (X, E, NAN, PACKED.data)]


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be(case: str) -> None:
    call, error, message = CASES[case]
    before = snapshot()
    with torch.random.fork_rng(), pytest.raises(error, match=message) as caught:
        call()
    assert type(caught.value) is error
    assert isinstance(caught.value, qlr.errors.QLRError)
    assert snapshot() == before
    for model, state in zip(MODELS, STATES, strict=True):
        own = model.state_dict()
        assert list(own) == list(state)
        assert all(torch.equal(own[key], value) for key, value in state.items())
    for t, own in zip(TENSORS, (X, E, NAN, PACKED.data), strict=True):
        assert torch.equal(t.nan_to_num(), own.nan_to_num())
    assert not Path(PATH).parent.exists()


def test_there_are_many() -> None:
    assert len(CASES) >= 150
