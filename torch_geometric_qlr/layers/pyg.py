"""The private parts of PyG that are relied on, all in this file."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.dense.linear import is_uninitialized_parameter
from torch_geometric.utils import is_sparse

__all__ = [
    "ATTRIBUTES_OF_ARGUMENTS",
    "PROPAGATE_NAMES",
    "check_edges",
    "drop_bound_propagate",
    "forget_cached",
    "fuses",
    "has_bound_propagate",
    "has_hooks",
    "has_own_edge_update",
    "has_own_product",
    "has_own_propagate",
    "is_left_alone",
    "is_of_pyg",
    "is_own_conv",
    "is_uninitialized_parameter",
    "message_arguments",
    "node_counts",
    "sends_from_sources",
    "sequential_children",
    "uncompiled_propagate",
]

#: PyG writes code for `propagate` when a class is made, unless the class has one of its own, and
#: switches between the two private names for explanations.
PROPAGATE_NAMES = ("propagate", "_orig_propagate", "_jinja_propagate")

#: Where models of PyG keep arguments of their constructors that they keep under another name.
ATTRIBUTES_OF_ARGUMENTS = {"jk": "jk_mode"}

_HOOKS = tuple(
    f"_{name}_forward_{kind}hooks"
    for name in ("propagate", "message", "aggregate", "message_and_aggregate")
    for kind in ("", "pre_")
)


def uncompiled_propagate() -> Any:
    """What :meth:`propagate` is before PyG compiles it, with explanations and decomposition."""
    # PyG replaces `propagate` on a class by generated code and keeps the original beside it.
    return getattr(MessagePassing, "_orig_propagate", MessagePassing.propagate)


def has_own_propagate(cls: type) -> bool:
    """Whether a class propagates by a user's :meth:`propagate` (PyG's generated code is none)."""
    # PyG compiles a class whose base has a `propagate` of its own, and that one is never called
    # then: the first that is found is the one that runs.
    base = next(base for base in cls.__mro__ if "propagate" in vars(base))
    method = vars(base)["propagate"]
    return base is not MessagePassing and not _is_generated(base, method)


def _is_generated(cls: type, method: Any) -> bool:
    """Whether PyG has written a method for a class: its code is in a module named after that."""
    if method in (uncompiled_propagate(), MessagePassing.propagate):
        return True
    return bool(getattr(method, "__module__", "") == f"{cls.__module__}_{cls.__name__}_propagate")


def is_of_pyg(written: Any) -> bool:
    """Whether a class or a function was written in PyG."""
    return bool(written.__module__.startswith("torch_geometric."))


def is_own_conv(cls: type) -> bool:
    """Whether a convolution is one of PyG's own, wherever it is exported."""
    return cls.__module__.startswith("torch_geometric.nn.conv.")


def has_own_product(cls: Any) -> bool:
    """Whether a user's class has its own fused product of a matrix and features."""
    module = getattr(cls.message_and_aggregate, "__module__", "")
    return not module.startswith(("torch_geometric.", "torch_geometric_qlr."))


def has_bound_propagate(layer: nn.Module) -> bool:
    """Whether PyG has bound one of its own :meth:`propagate` to an object, as it does for
    explanations and decomposition."""
    bound = layer.__dict__.get("propagate")
    function = getattr(bound, "__func__", None)
    cls = type(layer)
    known = [getattr(cls, n, None) for n in PROPAGATE_NAMES[1:]]
    return function is not None and (function in known or function is uncompiled_propagate())


def drop_bound_propagate(layer: nn.Module) -> None:
    """A quantized layer decides at each call instead of by what :func:`has_bound_propagate`."""
    if has_bound_propagate(layer):
        del layer.__dict__["propagate"]


def forget_cached(layer: nn.Module) -> None:
    """Layers of PyG keep what they have computed, with ``cached=True``, under names of one form."""
    for name in [name for name in layer.__dict__ if name.startswith("_cached_")]:
        setattr(layer, name, None)


def has_hooks(layer: Any) -> bool:
    """Whether somebody watches or changes the messages of a layer."""
    for hooks in _HOOKS:  # a generator would take several times as long
        if getattr(layer, hooks):
            return True
    return False


def has_own_edge_update(layer: Any) -> bool:
    """Whether somebody watches what a layer computes on its edges, or has replaced it there."""
    own = layer.__dict__
    return bool(
        own["_edge_update_forward_pre_hooks"]
        or own["_edge_update_forward_hooks"]
        or "edge_update" in own
        or "edge_updater" in own
    )


def is_left_alone(layer: Any) -> bool:
    """Whether nobody explains, decomposes or watches the messages of a layer: all of that at once,
    and without the properties of PyG, in the time of one of them."""
    own = layer.__dict__
    return not (
        own["_explain"]
        or own["_decomposed_layers"] > 1
        or own["_propagate_forward_pre_hooks"]
        or own["_propagate_forward_hooks"]
        or own["_message_forward_pre_hooks"]
        or own["_message_forward_hooks"]
        or own["_aggregate_forward_pre_hooks"]
        or own["_aggregate_forward_hooks"]
        or own["_message_and_aggregate_forward_pre_hooks"]
        or own["_message_and_aggregate_forward_hooks"]
    )


def check_edges(layer: Any, adj: Any) -> None:
    """Refuses what no layer takes for edges, as :meth:`propagate` does."""
    layer._check_input(adj, None)


def sends_from_sources(layer: Any, source: str) -> bool:
    r"""Whether the features of senders are all that a layer takes from its nodes.

    Args:
        layer (MessagePassing): The layer.
        source (str): Their name in :meth:`propagate`.
    """
    return all(name == f"{source}_j" or name[-2:] not in ("_i", "_j") for name in layer._user_args)


def sequential_children(model: Any) -> list[tuple[Any, list[str], list[str]]]:
    r"""The children of a :class:`torch_geometric.nn.Sequential` in order, each with the names of
    what it takes and of what it gives.

    Args:
        model (torch_geometric.nn.Sequential): The model.
    """
    return [(getattr(model, c.name), c.param_names, c.return_names) for c in model._children]


def fuses(layer: Any, adj: Any) -> bool:
    """Whether PyG takes the product of the whole matrix, which reads its values."""
    return bool(layer.fuse) and is_sparse(adj)


def node_counts(
    layer: Any, adj: Any, size: Any, kwargs: dict[str, Any]
) -> tuple[list[int | None], int]:
    r"""The sizes of both sets of nodes as PyG finds them out, and the number of those that receive.

    Args:
        layer (MessagePassing): The layer.
        adj (torch.Tensor or EdgeIndex or SparseTensor): Edges or matrix.
        size (tuple, optional): What :meth:`propagate` was given.
        kwargs (dict): Its other arguments.
    """
    i, j = (1, 0) if layer.flow == "source_to_target" else (0, 1)
    sizes: list[int | None] = layer._check_input(adj, size)
    for name in layer._fused_user_args if fuses(layer, adj) else layer._user_args:
        if name[-2:] not in ("_i", "_j"):
            continue
        value = kwargs.get(name[:-2])
        if isinstance(value, (tuple, list)):
            for dim, of in enumerate(value):
                if isinstance(of, Tensor):
                    layer._set_size(sizes, dim, of)
        elif isinstance(value, Tensor):
            layer._set_size(sizes, j if name[-2:] == "_j" else i, value)
    count = sizes[i] if sizes[i] is not None else sizes[j]
    assert count is not None
    return sizes, count


def message_arguments(
    layer: Any, adj: Any, sizes: list[int | None], kwargs: dict[str, Any]
) -> dict[str, Any]:
    r"""What :meth:`message` is called with, as PyG collects it.

    Args:
        layer (MessagePassing): The layer.
        adj (torch.Tensor or EdgeIndex or SparseTensor): Edges or matrix.
        sizes (list): From :func:`node_counts`.
        kwargs (dict): The arguments of :meth:`propagate`.
    """
    collected = layer._collect(layer._user_args, adj, list(sizes), kwargs)
    arguments: dict[str, Any] = layer.inspector.collect_param_data("message", collected)
    return arguments
