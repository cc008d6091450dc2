"""The quantizers as Brevitas injectors, for `brevitas.nn` layers and for this package's own.

Names follow Brevitas: what is quantized, then the granularity, then the truncation.
"""

from __future__ import annotations

from brevitas.core.function_wrapper import Identity, RoundSte, TensorClamp
from brevitas.core.quant import IntQuant
from brevitas.inject import ExtendedInjector, value
from brevitas.proxy import ActQuantProxyFromInjector, WeightQuantProxyFromInjector
from torch import nn

from torch_geometric_qlr.config import DEFAULT_METHOD, QuantizerConfig
from torch_geometric_qlr.quantizers.base import Quantizer
from torch_geometric_qlr.quantizers.methods import find_method

__all__ = [
    "QLRActPerTensor",
    "QLRActPerFeature",
    "QLRActPerNode",
    "QLRActPerTensorBT",
    "QLRActPerTensorSkewBT",
    "QLRWeightPerTensor",
    "QLRWeightPerChannel",
    "QLRWeightPerChannelBT",
    "QLRWeightPerChannelSkewBT",
]


class QLRInjector(ExtendedInjector):
    r"""What all of them share. Fields are overridden with :obj:`.let(...)`, or by the prefixed
    keyword arguments of a Brevitas layer (:obj:`weight_bit_width=4`)."""

    int_quant = IntQuant
    float_to_int_impl = RoundSte
    tensor_clamp_impl = TensorClamp
    input_view_impl = Identity
    signed = False
    narrow_range = False

    bit_width = 8
    truncation = None
    granularity = "tensor"
    statistics = "running"
    momentum = 0.1
    zero_aligned = False
    skewness_unit = "code"
    skewness_rounding = False
    search = True
    gradient_scaling = False
    method = DEFAULT_METHOD
    num_groups = 1
    channel_dim = 0

    @value
    def tensor_quant(method: str) -> type[Quantizer]:
        return find_method(method)

    @value
    def config(
        bit_width: int,
        truncation: str | None,
        granularity: str,
        statistics: str,
        momentum: float,
        zero_aligned: bool,
        skewness_unit: str,
        skewness_rounding: bool,
        search: bool,
        gradient_scaling: bool,
        method: str,
    ) -> QuantizerConfig:
        return QuantizerConfig(
            bits=bit_width,
            truncation=truncation,
            granularity=granularity,
            statistics=statistics,
            momentum=momentum,
            zero_aligned=zero_aligned,
            skewness_unit=skewness_unit,
            skewness_rounding=skewness_rounding,
            search=search,
            gradient_scaling=gradient_scaling,
            method=method,
        )


class QLRActPerTensor(QLRInjector):
    r"""Activations, one learned range.

    Example:
        >>> from brevitas.nn import QuantIdentity
        >>> layer = QuantIdentity(act_quant=QLRActPerTensor, bit_width=2)
        >>> layer(torch.tensor([0.0, 0.9, 2.1, 3.0])).round(decimals=2).tolist()
        [0.0, 1.0, 2.0, 3.0]
    """

    proxy_class = ActQuantProxyFromInjector


class QLRActPerFeature(QLRActPerTensor):
    r"""Activations, one learned range per feature; needs :obj:`num_groups`, their number."""

    granularity = "feature"


class QLRActPerNode(QLRActPerTensor):
    r"""Activations, one range per row, taken from the row, times one learned multiplier."""

    granularity = "node"
    statistics = "current"


class QLRActPerTensorBT(QLRActPerTensor):
    r"""Activations, one learned range, bitwise truncation from 8 bits."""

    bit_width = 2
    truncation = "bt"  # type: ignore[assignment]


class QLRActPerTensorSkewBT(QLRActPerTensorBT):
    r"""Activations, one learned range, skewness-aware bitwise truncation (BT*)."""

    truncation = "bt*"


class QLRWeightPerTensor(QLRInjector):
    r"""Weights, one learned range."""

    proxy_class = WeightQuantProxyFromInjector
    statistics = "current"


class QLRWeightPerChannel(QLRWeightPerTensor):
    r"""Weights, one learned range per output channel.

    Example:
        >>> from brevitas.nn import QuantLinear
        >>> layer = QuantLinear(16, 8, weight_quant=QLRWeightPerChannel, weight_bit_width=4)
        >>> layer.weight_quant.scale().shape
        torch.Size([8, 1])
    """

    granularity = "channel"

    @value
    def num_groups(module: nn.Module | tuple[nn.Module, ...]) -> int:
        first = module[0] if isinstance(module, tuple) else module
        return len(first.get_parameter("weight"))


class QLRWeightPerChannelBT(QLRWeightPerChannel):
    r"""Weights, one learned range per output channel, bitwise truncation from 8 bits."""

    bit_width = 2
    truncation = "bt"  # type: ignore[assignment]


class QLRWeightPerChannelSkewBT(QLRWeightPerChannelBT):
    r"""Weights, one learned range per output channel, skewness-aware bitwise truncation (BT*)."""

    truncation = "bt*"
