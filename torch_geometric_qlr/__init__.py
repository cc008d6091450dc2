"""Low-bit PyTorch Geometric: any model in one line, with ranges that learn.

>>> import torch_geometric_qlr as qlr
>>> from torch_geometric.nn import GCN
>>> qmodel = qlr.quantize(GCN(16, 32, num_layers=2, out_channels=4), bits=2)
"""

from torch_geometric_qlr._quiet import quiet as _quiet

with _quiet():  # Brevitas tells what it lacks and how it escapes, PyG what torch will take from it
    import brevitas.core as _brevitas  # noqa: F401
    import torch_geometric as _torch_geometric  # noqa: F401

from torch_geometric_qlr import errors, loader, metrics, nn, quantizers, tensor, transforms
from torch_geometric_qlr._version import __version__
from torch_geometric_qlr.calibration import calibrate, calibrating
from torch_geometric_qlr.config import QLRConfig
from torch_geometric_qlr.io import export, from_pretrained, load, save, save_pretrained
from torch_geometric_qlr.layerwise import inference
from torch_geometric_qlr.nn import register_conv, register_linear
from torch_geometric_qlr.search import search_bits
from torch_geometric_qlr.training import (
    distill,
    parameter_groups,
    quant_parameters,
    weight_parameters,
)
from torch_geometric_qlr.transforms import (
    conversion,
    convert,
    convert_,
    pack_features,
    plan,
    quantize,
    quantize_,
    report,
)

__all__ = [
    "QLRConfig",
    "__version__",
    "calibrate",
    "calibrating",
    "conversion",
    "convert",
    "convert_",
    "distill",
    "errors",
    "export",
    "inference",
    "from_pretrained",
    "load",
    "loader",
    "metrics",
    "nn",
    "pack_features",
    "parameter_groups",
    "plan",
    "quant_parameters",
    "quantize",
    "quantize_",
    "quantizers",
    "register_conv",
    "register_linear",
    "report",
    "save",
    "save_pretrained",
    "search_bits",
    "tensor",
    "transforms",
    "weight_parameters",
]
