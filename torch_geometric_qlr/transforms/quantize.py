"""From a float model to one that trains with low-bit weights, activations and messages."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from torch import nn

from torch_geometric_qlr.config import QLRConfig, check_fields
from torch_geometric_qlr.errors import ConfigError
from torch_geometric_qlr.layers.running import follow
from torch_geometric_qlr.nn.copying import copy_of
from torch_geometric_qlr.nn.plan import Plan
from torch_geometric_qlr.nn.planner import make_plan
from torch_geometric_qlr.nn.rewrite import apply_recipe
from torch_geometric_qlr.nn.state_metadata import report_fresh_ranges
from torch_geometric_qlr.training import watch_decay

__all__ = ["Quantize", "plan", "quantize", "quantize_"]

M = TypeVar("M", bound=nn.Module)


def _config(config: QLRConfig | int | str | None, kwargs: dict[str, Any]) -> QLRConfig:
    check_fields(kwargs)
    if isinstance(config, bool) or not isinstance(config, (QLRConfig, int, str, type(None))):
        raise ConfigError(
            f"config is a {type(config).__name__}; expected a QLRConfig, a number of bits or the "
            f"name of a preset."
        )
    if isinstance(config, int):
        config = QLRConfig(bits=config)
    elif isinstance(config, str):
        config = QLRConfig(preset=config)
    if config is None:
        return QLRConfig(**kwargs)
    return config.replace(**kwargs) if kwargs else config


def plan(model: nn.Module, config: QLRConfig | int | str | None = None, **kwargs: Any) -> Plan:
    r"""A dry run of :func:`quantize`: per module what happens, where, with how many bits, or why
    not. Prints as a table.

    Args:
        model (torch.nn.Module): Any model; it is not changed.
        config (QLRConfig or int or str, optional): As for :func:`quantize`.
        **kwargs: Fields of :class:`~torch_geometric_qlr.QLRConfig`.

    Raises:
        QLRError: Whatever :func:`quantize` would raise.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> from torch_geometric.nn import GCN
        >>> print(qlr.plan(GCN(8, 16, num_layers=2, out_channels=4), bits=2))
        module       layer    family  quantized at             bits (w/a/m)  note
        convs.0      GCNConv  copy    source, edge_weight (8)  -/-/2         bias kept float
        convs.0.lin  Linear   linear  input, weight            2/2/-
        convs.1      GCNConv  copy    source, edge_weight (8)  -/-/2         bias kept float
        convs.1.lin  Linear   linear  input, weight            2/2/-
        quantized: 90.6 % of 212 parameters; messages of 2 of 2 layers
    """
    return make_plan(model, _config(config, kwargs))


def quantize_(model: M, config: QLRConfig | int | str | None = None, **kwargs: Any) -> M:
    r"""Quantizes a model in place and returns it, see :func:`quantize`.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> layer = torch.nn.Linear(4, 2)
        >>> qlr.quantize_(layer, bits=4) is layer
        True
    """
    resolved = _config(config, kwargs)
    apply_recipe(model, make_plan(model, resolved).recipe)
    model.register_load_state_dict_post_hook(report_fresh_ranges)
    follow(model)
    watch_decay(model)
    return model


def quantize(model: M, config: QLRConfig | int | str | None = None, **kwargs: Any) -> M:
    r"""A copy of the model whose weights, activations and messages are quantized while it computes,
    with ranges that learn. It trains, evaluates and saves as before.

    Args:
        model (torch.nn.Module): Any PyG model, trained or not.
        config (QLRConfig or int or str, optional): A config, a number of bits or the name of a
            preset. (default: INT8)
        **kwargs: Fields of :class:`~torch_geometric_qlr.QLRConfig`, such as :obj:`bits=2` or
            :obj:`truncation="bt*"`; they win over :obj:`config`.

    Raises:
        NothingToQuantizeError: If nothing would change.
        AlreadyQuantizedError: If a layer is quantized already.
        LazyModuleError: If a layer has no weights yet.
        ConfigError: If the config is wrong, or an override matches no module.
        UnsupportedLayerError: If the model is no :class:`torch.nn.Module`, or a compiled one.
        InputError: If a weight holds NaN or Inf.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> from torch_geometric.nn import GraphSAGE
        >>> model = GraphSAGE(8, 16, num_layers=2, out_channels=4)
        >>> qmodel = qlr.quantize(model, bits=2, truncation="bt*")
        >>> qmodel(torch.rand(3, 8), torch.tensor([[0, 1], [1, 2]])).shape
        torch.Size([3, 4])
    """
    resolved = _config(config, kwargs)
    make_plan(model, resolved)  # refuses before anything is copied
    return quantize_(copy_of(model), resolved)


@dataclasses.dataclass(init=False)
class Quantize:
    r"""The transform of :func:`~torch_geometric_qlr.quantize`, to compose with others.

    Args:
        config (QLRConfig or int or str, optional): As for
            :func:`~torch_geometric_qlr.quantize`.
        **kwargs: Fields of :class:`~torch_geometric_qlr.QLRConfig`.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> type(qlr.transforms.Quantize(bits=4)(torch.nn.Linear(4, 2))).__name__
        'QuantLinear'
    """

    config: QLRConfig

    def __init__(self, config: QLRConfig | int | str | None = None, **kwargs: Any) -> None:
        self.config = _config(config, kwargs)

    def __call__(self, model: M) -> M:
        return quantize(model, self.config)

    def __repr__(self) -> str:
        given = {k: v for k, v in self.config.to_dict().items() if k != "version"}
        return f"Quantize({', '.join(f'{k}={v!r}' for k, v in given.items())})"
