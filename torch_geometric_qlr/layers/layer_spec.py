"""What is known about one layer class, all of it: one row of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor

from torch_geometric_qlr.sparse import is_matrix

__all__ = [
    "REWRITTEN",
    "EdgePreparation",
    "EdgeUpdateFacts",
    "Facts",
    "Family",
    "ForwardFacts",
    "HopChain",
    "LayerSpec",
    "MessageFacts",
    "OwnTerm",
    "facts_of",
]

Family = Literal["copy", "attention", "edge", "linear", "weights", "container", "float"]

#: Families whose layers become quantized objects.
REWRITTEN: tuple[Family, ...] = ("copy", "attention", "edge", "linear", "weights")

_KINDS: Mapping[str, str] = {
    "copy": "messages",
    "attention": "messages",
    "edge": "messages",
    "linear": "linear",
    "weights": "weights",
}


@dataclass(frozen=True, kw_only=True)
class EdgePreparation:
    r"""What a forward does to its edges before anything else, such as normalising them. On codes it
    is done once per graph and remembered; the layer sees the option that asks for it switched off.
    The forward calls its features :obj:`x` and its edges :obj:`edge_index`.

    Args:
        prepare (callable): Does it: from the layer, the arguments of the forward by name, the
            edges, and what belongs to them. It returns both, or the edges alone.
        flag (str): The option of the layer without which it does nothing; empty if it always does.
        extra (str): The argument of the forward that belongs to the edges; empty if none does.
        options (tuple): Attributes of the layer that decide about the result.
        takes_pairs (bool): Whether it can be done for two sets of nodes.

    Example:
        >>> from torch_geometric.utils import add_self_loops
        >>> import torch_geometric_qlr as qlr
        >>> def loops(layer, arguments, edges, extra):
        ...     return add_self_loops(edges, num_nodes=arguments["x"].size(0))[0]
        >>> qlr.nn.EdgePreparation(prepare=loops, flag="add_self_loops").extra
        ''
    """

    prepare: Callable[[Any, dict[str, Any], Any, Any], Any]
    flag: str = ""
    extra: str = ""
    options: tuple[str, ...] = ()
    takes_pairs: bool = False

    def takes(self, edges: Any) -> bool:
        r"""Whether it can be done for edges in this form. Of the others the forward sees to itself.

        Args:
            edges (torch.Tensor or EdgeIndex or SparseTensor): Edges ``[2, E]`` or a matrix.
        """
        return isinstance(edges, Tensor) or (is_matrix(edges) and self.extra == "edge_weight")


@dataclass(frozen=True, kw_only=True)
class HopChain:
    r"""A forward that is nothing but hops that follow each other, which one operation computes:

    .. math::
        \mathbf{H} \leftarrow (1 - \alpha) \mathbf{P} \mathbf{H} + \alpha \mathbf{X}

    It calls its features :obj:`x`, and edges and their weights :obj:`edge_index` and
    :obj:`edge_weight`; how many hops there are says :obj:`hops` of the row.

    Args:
        operation (str): :obj:`"propagate"`, or :obj:`"smp"` for the steps of
            :class:`~torch_geometric_qlr.nn.SMP`.
        teleport (str): The attribute :math:`\alpha`; empty if nothing is added.
        then (str): The child that is applied to the last hop; empty if none is.
        unless (str): Argument of the forward with which it is something else.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> qlr.nn.HopChain(teleport="alpha").operation  # as in APPNP
        'propagate'
    """

    operation: Literal["propagate", "smp"] = "propagate"
    teleport: str = ""
    then: str = ""
    unless: str = ""


@dataclass(frozen=True, kw_only=True)
class OwnTerm:
    r"""A forward that adds a multiple of a node's own features to what its neighbors send, and
    hands the sum to a child:

    .. math::
        \mathbf{x}^{\prime}_i = h \left( k \, \mathbf{x}_i + \sum_{j} \mathbf{x}_j \right)

    It calls its features :obj:`x` and its edges :obj:`edge_index`, and propagates the features as a
    pair.

    Args:
        factor (callable): :math:`k` from the layer, which an operation rounds to float32;
            :obj:`None` if it is no number in the memory of the CPU.
        then (str): The child :math:`h`.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> qlr.nn.OwnTerm(factor=lambda conv: 1.0, then="nn").then
        'nn'
    """

    factor: Callable[[Any], float | None]
    then: str


@dataclass(frozen=True, kw_only=True)
class ForwardFacts:
    r"""What is known of the code of a forward. It holds for every class that runs this very method,
    and for no class that has one of its own.

    Args:
        edges (EdgePreparation, optional): What it does to its edges.
        chain (HopChain, optional): The one operation that computes all of it.
        own_term (OwnTerm, optional): What it adds to its messages, which one operation may do.
        pairs (bool): Whether a pair of features, of nodes that send and of some of them that
            receive, gives for the latter what the features of all nodes give, bit for bit, without
            a thing to do to its edges.
        kinds (callable, optional): Which of its quantizers each call of :obj:`propagate` takes,
            from the layer and what the forward is called with; by default they take turns.
        computes (str): Of other layers: :obj:`"product"` if it is
            :math:`\mathbf{X} \mathbf{W}^{\top} + \mathbf{b}`, :obj:`"lookup"` if it takes rows of
            its weight.
    """

    edges: EdgePreparation | None = None
    chain: HopChain | None = None
    own_term: OwnTerm | None = None
    pairs: bool = False
    kinds: Callable[..., tuple[int, ...]] | None = None
    computes: Literal["", "product", "lookup"] = ""

    @property
    def runs_as_it_is(self) -> bool:
        """Whether on codes, too, it runs with the edges that it was called with."""
        return self.chain is None and (self.edges is None or not self.edges.flag)


@dataclass(frozen=True, kw_only=True)
class MessageFacts:
    r"""What is known of the code of :obj:`message` that cannot be found out by reading and trying
    it. It holds for every class that runs this very method.

    Args:
        coefficients (str): The source that it multiplies by coefficients which it computes itself,
            and does nothing else to.
        copies (str): The source that it copies, although it reads more than that.
        unless (str): Argument of :obj:`propagate` with which it does something else.
        obstacle (callable): Why the messages of a layer are something else, from the layer;
            :obj:`""` if they are not.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> qlr.nn.MessageFacts(coefficients="value").copies
        ''
    """

    coefficients: str = ""
    copies: str = ""
    unless: str = ""
    obstacle: Callable[[Any], str] = lambda layer: ""


def _no_logits(layer: Any, arguments: dict[str, Any]) -> Tensor | None:
    return None


@dataclass(frozen=True, kw_only=True)
class EdgeUpdateFacts:
    r"""What is known of the code of :obj:`edge_update`, where it is attention:

    .. math::
        \alpha_{ij} = \mathrm{softmax}_j \left( \mathrm{LeakyReLU} (a_j + b_i + e_{ij}) \right)

    for each head, and after that nothing but dropout. On codes one operation computes it. It holds
    for every class that runs this very method.

    Args:
        logits (str): The argument of :obj:`edge_updater` with :math:`a` and :math:`b`, a pair of
            matrices ``[N, H]`` and ``[M, H]``; empty if the method does something else.
        edge_logits (callable): :math:`e`, a matrix ``[E, H]``, from the layer and the arguments of
            :obj:`edge_updater` by name; :obj:`None` if there is none.
        slope (str): The attribute that holds the slope of the LeakyReLU.

    Example:
        >>> import torch_geometric_qlr as qlr
        >>> qlr.nn.EdgeUpdateFacts(logits="alpha").slope
        'negative_slope'
    """

    logits: str = ""
    edge_logits: Callable[[Any, dict[str, Any]], Tensor | None] = _no_logits
    slope: str = "negative_slope"


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    r"""How a layer class is quantized, and what is known of how it computes.

    Args:
        family (str): :obj:`"copy"` (sends source features, maybe weighted), :obj:`"attention"` (the
            same with coefficients computed from the data), :obj:`"edge"` (a message per edge),
            :obj:`"linear"`, :obj:`"weights"` (parameters only), :obj:`"container"` (its children do
            the work) or :obj:`"float"` (stays as it is, for the reason in :obj:`note`).
        sources (tuple): Arguments of :obj:`propagate` that hold source features.
        logit_sources (tuple): Those that only enter attention logits, kept at 8 bits or more.
        weights (dict): Parameters outside of Linears that multiply features, with the dimension of
            their output channels, 0 or -1.
        logit_weights (tuple): Attention vectors, kept at 8 bits or more.
        hops (callable): Number of :obj:`propagate` calls in a forward, from the layer.
        hop_kinds (callable): How many different things those calls propagate in turn, from the
            layer: quantizers that hops share are shared by every so many calls.
        propagates_input (bool): Whether the layer propagates before it transforms.
        input_children (tuple): The children that its input goes through first; by default each may.
        first_argument (str): What the forward takes first: :obj:`"features"`, which are checked to
            be floats, or :obj:`"any"`, which is left to the layer.
        features_last (bool): Whether the features are the last dimension of what it takes.
        rough (callable): Why the propagation of a layer cannot be smoothed, from the layer;
            :obj:`""` if it is a linear operator on the features, with normalised weights.
        forward (ForwardFacts): What is known of the code of its forward.
        message (MessageFacts): What is known of the code of its :obj:`message`.
        edge_update (EdgeUpdateFacts): What is known of the code of its :obj:`edge_update`.
        reads_anywhere (str): The child that a model reads as a tensor wherever it likes, so that no
            quantizer could act.
        reads_in_forward (str): The child whose weights the forward reads instead of calling it.
        calls_children (bool): Whether its quantized form calls each child, where the float layer
            computes them together from their weights.
        fast_paths (dict): Attributes that turn off code which goes around quantized children, with
            the values that do so.
        note (str): A reason or remark, shown by :func:`torch_geometric_qlr.plan`.
    """

    family: Family
    sources: tuple[str, ...] = ()
    logit_sources: tuple[str, ...] = ()
    weights: Mapping[str, int] = field(default_factory=dict)
    logit_weights: tuple[str, ...] = ()
    hops: Callable[[Any], int] = lambda layer: 1
    hop_kinds: Callable[[Any], int] = lambda layer: 1
    propagates_input: bool = False
    input_children: tuple[str, ...] = ()
    first_argument: Literal["features", "any"] = "features"
    features_last: bool = True
    rough: Callable[[Any], str] = lambda layer: "its operator is not known to be normalised"
    forward: ForwardFacts = ForwardFacts()
    message: MessageFacts = MessageFacts()
    edge_update: EdgeUpdateFacts = EdgeUpdateFacts()
    reads_anywhere: str = ""
    reads_in_forward: str = ""
    calls_children: bool = False
    fast_paths: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def weight_names(self) -> tuple[str, ...]:
        """Parameters read through a quantizer."""
        return (*self.weights, *self.logit_weights)

    @property
    def kind(self) -> str:
        """What its layers become, a key of ``packed.kinds.KINDS``; empty if they stay float."""
        return _KINDS.get(self.family, "")

    @property
    def parent_kind(self) -> str:
        """What a layer that stays float becomes once its children are quantized, likewise."""
        return "dict" if self.calls_children else "weights" if self.reads_in_forward else ""


class Facts(NamedTuple):
    r"""What holds for one class, whoever's rows it was found in; ``_qlr_facts`` of its quantized
    class.

    Args:
        forward (ForwardFacts): Of the forward that it runs.
        message (MessageFacts): Of the :obj:`message` that it runs.
        edge_update (EdgeUpdateFacts): Of the :obj:`edge_update` that it runs.
        reads_in_forward (str): The child whose weights its forward reads.
        expects_features (bool): Whether the first argument of its forward must hold features.
        hops (callable): Number of :obj:`propagate` calls in a forward, from the layer.
    """

    forward: ForwardFacts = ForwardFacts()
    message: MessageFacts = MessageFacts()
    edge_update: EdgeUpdateFacts = EdgeUpdateFacts()
    reads_in_forward: str = ""
    expects_features: bool = False
    hops: Callable[[Any], int] = lambda layer: 1


def facts_of(layer: Any) -> Facts:
    r"""What was known of a quantized layer's class when it was quantized.

    Args:
        layer (torch.nn.Module): The layer.
    """
    facts: Facts = type(layer)._qlr_facts
    return facts
