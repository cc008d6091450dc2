"""From a trained quantized model to one that computes on packed integers."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TypeVar

from torch import nn

from torch_geometric_qlr.errors import (
    AlreadyQuantizedError,
    ConfigError,
    NothingToQuantizeError,
    QLRWarning,
    UnsupportedLayerError,
)
from torch_geometric_qlr.layers.state import parameter_of, state_of
from torch_geometric_qlr.nn import QuantLayer
from torch_geometric_qlr.nn.copying import copy_of
from torch_geometric_qlr.nn.layer import check_not_parametrized
from torch_geometric_qlr.nn.packed import PackedLayer, pack_layers
from torch_geometric_qlr.ops import use_backend
from torch_geometric_qlr.quantizers import Quantizer

__all__ = ["Convert", "convert", "convert_"]

M = TypeVar("M", bound=nn.Module)


def convert(model: M, backend: str = "auto", *, fuse: bool = True) -> M:
    r"""A copy of a quantized model that computes on packed integer codes, for inference.

    It gives what ``model.eval()`` gives, with weights at their own width in memory and in the
    ``state_dict``. Linears multiply codes, convs gather packed source rows along a CSR that is
    built once per adjacency object, and where ranges are static a result is written as the codes
    that the next layer reads. A layer that has no packed form computes as before with unpacked
    weights; a warning names it, and :func:`~torch_geometric_qlr.report` lists all
    layers.

    Under :func:`torch.no_grad` the quantized model computes with the same operations, so the two
    agree bit for bit. With gradients, or without kernels, it computes in floating point, and they
    agree to float32 rounding. Batch norm that a kernel takes over rounds in another order as well.
    Where such a result is quantized *again* and lies beside the middle between two codes, it may
    differ by one code.

    Conversion ends calibration: ranges that were made of evaluation batches do not grow any more,
    in the copy nor in the model itself, so that both go on giving the same.

    Features may be passed as :class:`~torch_geometric_qlr.tensor.PackedTensor`, whose codes are
    taken as they are.

    Args:
        model (torch.nn.Module): A model from :func:`~torch_geometric_qlr.quantize` that has seen
            data (in training or calibration).
        backend (str): Who computes packed operations: :obj:`"auto"`, :obj:`"cpu"`,
            :obj:`"reference"` or any other back end that
            :func:`torch_geometric_qlr.ops.use_backend` knows.
            (default: :obj:`"auto"`)
        fuse (bool): Whether a result that was seen to be read by one quantizer only, when the model
            first ran, is never written as floats. The answers are the same. Code that does
            something else later gets its floats all the same. (default: :obj:`True`)

    Raises:
        NothingToQuantizeError: If the model is not quantized.
        AlreadyQuantizedError: If it is converted already.
        ConfigError: If none of its ranges has ever seen data.
        InputError: If its weights are not float32.
        BackendError: If the back end is not available.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> from torch_geometric.nn import GCN
        >>> x, edge_index = torch.rand(3, 8), torch.tensor([[0, 1], [1, 2]])
        >>> model = qlr.quantize(GCN(8, 16, num_layers=2, out_channels=4), bits=4).eval()
        >>> with torch.no_grad():
        ...     out = model(x, edge_index)
        >>> packed = qlr.convert(model)
        >>> torch.equal(packed(x, edge_index), out)
        True
        >>> print(qlr.report(packed))
        module       layer          runs as         weight bits  weight bytes  edge bits  note
        convs.0      PackedGCNConv  packed sum      -            -             8
        convs.0.lin  PackedLinear   packed product  4            512 -> 384    -
        convs.1      PackedGCNConv  packed sum      -            -             8
        convs.1.lin  PackedLinear   packed product  4            256 -> 96     -
        packed: 4 of 4 layers
    """
    _check(model, backend)
    for module in model.modules():
        if isinstance(module, Quantizer):
            module.fix()
    return convert_(copy_of(model), backend, fuse=fuse)


def convert_(model: M, backend: str = "auto", *, fuse: bool = True) -> M:
    r"""Converts a quantized model in place and returns it, see :func:`convert`.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> layer = qlr.quantize(torch.nn.Linear(4, 2), bits=4)
        >>> _ = layer(torch.rand(3, 4))
        >>> qlr.convert_(layer) is layer, type(layer).__name__
        (True, 'PackedLinear')
    """
    _check(model, backend)
    done = pack_layers(model, backend, fuse=fuse)
    told = [f"{e.name or e.layer} ({e.note})" for e in done.entries if e.note]
    if told:
        shown = "; ".join(told[:3]) + ("; ..." if len(told) > 3 else "")
        warnings.warn(
            f"{len(told)} of {len(done.entries)} converted layers compute in floating point, are "
            f"slow or have parts without a range: {shown}. See qlr.report(model).",
            QLRWarning,
            stacklevel=2,
        )
    return model


def _check(model: nn.Module, backend: str) -> None:
    if not isinstance(model, nn.Module):
        raise UnsupportedLayerError(
            f"Expected a quantized torch.nn.Module (got {type(model).__name__}). Pass what "
            f"qlr.quantize(model) returned; qlr.calibrate changes that in place."
        )
    with use_backend(backend):
        pass
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantLayer) and state_of(m)}
    for name, layer in layers.items():
        if isinstance(layer, PackedLayer):
            raise AlreadyQuantizedError(
                f"{name or type(layer).__name__} is converted already. Convert the quantized "
                f"model once, and keep it if you want to train on."
            )
    if not layers:
        raise NothingToQuantizeError(
            f"{type(model).__name__} has no quantized layer to convert. Call qlr.quantize(model) "
            f"and train or calibrate it first."
        )
    for name, layer in layers.items():
        check_not_parametrized(layer)
        _check_not_computed(name, layer)
    _check_calibrated(layers)


def _check_not_computed(name: str, layer: QuantLayer) -> None:
    """Refuses a weight that a hook makes anew in every call, as pruning and weight norm do."""
    for weight in type(layer)._qlr_made.weight_names:
        if weight in layer.__dict__:
            raise UnsupportedLayerError(
                f"{name or type(layer).__name__}: a hook computes its {weight} in every call, as "
                f"pruning and weight norm do, and codes cannot follow. Make it permanent first, "
                f"with torch.nn.utils.prune.remove or remove_weight_norm."
            )


def _check_calibrated(layers: dict[str, QuantLayer]) -> None:
    # The range of a weight needs no data, and a layer may have parts that the data never reaches.
    ranges = [
        q
        for layer in layers.values()
        for key, found in state_of(layer).items()
        if parameter_of(key) not in type(layer)._qlr_made.weight_names
        for q in found.modules()
        if isinstance(q, Quantizer)
    ]
    if ranges and not any(q.has_range for q in ranges):
        raise ConfigError(
            f"{ranges[0].path or 'the model'} has no range yet: the model has never seen data. "
            f"Train it, or run model.eval() on representative batches, then convert it."
        )


@dataclasses.dataclass
class Convert:
    r"""The transform of :func:`~torch_geometric_qlr.convert`, to compose with others.

    Args:
        backend (str): As for :func:`~torch_geometric_qlr.convert`. (default: :obj:`"auto"`)
        fuse (bool): Likewise. (default: :obj:`True`)

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> layer = qlr.quantize(torch.nn.Linear(4, 2), bits=4)
        >>> _ = layer(torch.rand(3, 4))
        >>> type(qlr.transforms.Convert()(layer)).__name__
        'PackedLinear'
    """

    backend: str = "auto"
    fuse: bool = dataclasses.field(default=True, repr=False)

    def __call__(self, model: M) -> M:
        return convert(model, self.backend, fuse=self.fuse)
