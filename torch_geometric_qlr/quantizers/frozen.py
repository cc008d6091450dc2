"""Quantizers that have stopped learning: fixed numbers, made once."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from torch_geometric_qlr.errors import ConfigError, InputError
from torch_geometric_qlr.ops import affine_params, storage_bits
from torch_geometric_qlr.ops.reference import truncation_step
from torch_geometric_qlr.quantizers.base import CodeParams, Quantizer
from torch_geometric_qlr.quantizers.observing import RangeState
from torch_geometric_qlr.quantizers.torch_state import is_abstract, is_transformed
from torch_geometric_qlr.tensor import OutputQuantizer, PackedTensor

__all__ = ["Frozen", "FrozenGrid", "LastingGrid", "Made", "RowGrid", "freeze_ranges"]

F = TypeVar("F", bound="Frozen")

#: Packed codes, their columns, and scale and zero point.
Made = tuple[Tensor, int, Sequence[Tensor]]


class RowGrid(NamedTuple):
    r"""How the rows of a matrix become codes, as ``torch.ops.qlr.quantize_linear`` takes it.

    Args:
        scale (torch.Tensor): Of all rows; of rows with a range of their own what multiplies theirs.
        zero_point (torch.Tensor, optional): Of all rows; :obj:`None` for ranges of their own.
        bits (int): Width of a code.
        truncate (bool): Whether codes are cut from 8 bits.
        aligned (bool): Whether zero points of their own are levels of truncated codes.
        skew (torch.Tensor, optional): Shift of the thresholds.
    """

    scale: Tensor
    zero_point: Tensor | None
    bits: int
    truncate: bool
    aligned: bool
    skew: Tensor | None


class _Known(NamedTuple):
    """What a grid that is known before the data needs to make codes, and how they are read back."""

    grid: RowGrid
    read_back: tuple[Tensor, Tensor]


#: The buffers of a quantizer: name, tensor, and how often it had been written to.
_Numbers = list[tuple[str, Tensor, int]]


class LastingGrid(NamedTuple):
    r"""How all matrices become codes until a number of the quantizer changes, see
    :meth:`Frozen.lasts`.

    Args:
        grid (RowGrid): How rows become codes.
        read_back (tuple, optional): Scale and zero point of the codes; :obj:`None` where each row
            has its own.
        numbers (list): What it was made from.
    """

    grid: RowGrid
    read_back: tuple[Tensor, Tensor] | None
    numbers: _Numbers


class Frozen(Quantizer):
    r"""Base class of what :meth:`~torch_geometric_qlr.quantizers.Quantizer.freeze` returns. The
    numbers of a grid that is known before the data are computed once, and again when the state that
    they come from has changed.

    A subclass says with :meth:`_found` how they follow from its buffers.
    """

    is_frozen = True

    @classmethod
    def _holding(cls: type[F], numbers: Mapping[str, Tensor], like: Quantizer) -> F:
        """A frozen quantizer with copies of these numbers as buffers, in the place of another."""
        frozen = cls(like.config, like.num_groups, like.channel_dim)
        frozen.path = like.path
        frozen._buffers.clear()  # in the order of the state that is copied
        for name, tensor in numbers.items():
            frozen.register_buffer(name, tensor.detach().clone())
        frozen.register_buffer("calibrated", like.calibrated.ne(0).long() * RangeState.FIXED)
        frozen._renew()
        return frozen.eval()

    @abstractmethod
    def _found(self, x: Tensor, exact_zero: bool = False, skew: Tensor | None = None) -> CodeParams:
        """What :meth:`code_params` gives, from the buffers as they are now."""

    def freeze(self) -> Quantizer:
        return copy.deepcopy(self)

    def reset_parameters(self) -> None:
        """Nothing to start anew: what is frozen stays as it is."""

    # What is computed once ########################################################################

    def _forget(self) -> None:
        """After a change of what is computed once."""
        self._static: CodeParams | None = None
        self._output: OutputQuantizer | None = None
        self._known: _Known | None = None
        self._made_from: _Numbers = []
        self._state = RangeState.MISSING  # as the buffer says
        self._usable = is_abstract(self.calibrated) or self.has_range

    def _renew(self) -> None:
        """After all of it is new: while a model is traced nothing can be computed once."""
        self._forget()
        if self._usable and not is_abstract(self.calibrated):
            self._make()

    def _make(self) -> None:
        """Computes what can be."""
        if self.is_static:
            self.code_params(self.calibrated)
            self.output()

    def _check_made(self) -> None:
        """Numbers that have been replaced or written to make what was computed from them stale."""
        if self._made_from and self._holds(self._made_from):
            return
        self._forget()
        self._made_from = [(n, t, _version(t)) for n, t in self._buffers.items() if t is not None]

    def _holds(self, numbers: _Numbers) -> bool:
        """Whether these are its buffers, as they are."""
        buffers = self._buffers
        for name, then, version in numbers:
            now = buffers[name]
            if now is not then or (version >= 0 and now._version != version):
                return False
        return True

    def code_params(
        self, x: Tensor, *, exact_zero: bool = False, skew: Tensor | None = None
    ) -> CodeParams:
        if not self._usable:
            raise ConfigError(
                f"{self._name} has never seen data, so it has no range. Run the quantized model "
                f"on data that reaches this layer before you convert it."
            )
        if exact_zero or not self.is_static or is_transformed():
            return self._found(x, exact_zero, skew)
        if torch.compiler.is_compiling():
            return self._static or self._found(x)
        self._check_made()
        static = self._static
        if static is None:
            with torch.inference_mode(False), torch.no_grad():
                static = self._static = self._found(x)
        return static

    def output(self, *, growing: bool = False) -> OutputQuantizer | None:
        if not self.is_static or not self._usable:
            return None
        if torch.compiler.is_compiling():
            return self._output or self._output_quantizer()
        self._check_made()
        output = self._output
        if output is None:
            output = self._output = self._output_quantizer()
        return output

    # Codes ########################################################################################

    def row_grid(self, x: Tensor) -> RowGrid | None:
        r"""How rows become codes, for an op that makes them on the way.

        Args:
            x (torch.Tensor): The rows.

        Returns:
            RowGrid: Or :obj:`None` if :meth:`pack` has to be asked.
        """
        if not self._usable or not self._takes(x) or is_transformed() or not x.numel() > 0:
            return None
        return self._row_grid(x)

    def _row_grid(self, x: Tensor) -> RowGrid | None:
        if not self.is_static:
            return None
        if torch.compiler.is_compiling():
            return self._grid_of(self.code_params(x))
        return self._known_grid(x).grid

    def _grid_of(self, params: CodeParams) -> RowGrid:
        scale, zero_point, skew = params
        return RowGrid(scale, zero_point, self.config.bits, self.config.truncates, False, skew)

    def _known_grid(self, x: Tensor) -> _Known:
        self._check_made()
        known = self._known
        if known is None:
            grid = self._grid_of(self.code_params(x))
            assert grid.zero_point is not None
            back = affine_params(grid.scale, grid.zero_point, grid.bits, grid.truncate)
            known = self._known = _Known(grid, back)
        return known

    def lasting_grid(self, x: Tensor) -> LastingGrid | None:
        r"""The same for all matrices to come, as long as it :meth:`lasts`.

        Args:
            x (torch.Tensor): One of them.

        Returns:
            LastingGrid: Or :obj:`None` if it depends on the matrix.
        """
        grid = self.row_grid(x)
        if grid is None or torch.compiler.is_compiling() or not self._is_lasting():
            return None
        self._check_made()
        back = None if grid.zero_point is None else self._known_grid(x).read_back
        return LastingGrid(grid, back, self._made_from)

    def _is_lasting(self) -> bool:
        """Whether nothing of :meth:`row_grid` depends on the matrix."""
        return self.is_static

    def lasts(self, known: LastingGrid) -> bool:
        r"""Whether a grid still holds.

        Args:
            known (LastingGrid): From :meth:`lasting_grid`.
        """
        return known.numbers is self._made_from and self._holds(known.numbers)

    def _packed(self, x: Tensor) -> PackedTensor:
        if not self._usable or is_transformed() or not x.numel() > 0:
            return super()._packed(x)
        try:
            made = self._codes(x if self._takes(x) else self._checked(x))
        except InputError as error:
            raise InputError(f"{self._name}: {error}") from None
        if made is None:
            return super()._packed(x)
        packed, cols, params = made
        return PackedTensor.unchecked(packed, cols, storage_bits(self.bits), *params)

    def _takes(self, x: Tensor) -> bool:
        """Whether a tensor is as nearly always, so that there is nothing to check."""
        return x.dtype == torch.float32 and x.dim() == 2 and self.num_groups == 1

    def _codes(self, x: Tensor) -> Made | None:
        """Codes with the numbers that are known, and how they are read back; :obj:`None` if they
        are made as ever."""
        if not self.is_static or torch.compiler.is_compiling() or x.dim() != 2:
            return None
        (scale, zero_point, bits, truncate, _, skew), back = self._known_grid(x)
        packed = torch.ops.qlr.quantize_pack(x, scale, zero_point, bits, truncate, skew)
        return packed, x.size(1), back

    # What a module goes through ###################################################################

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        super()._apply(fn, recurse)
        self._renew()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._renew()


class FrozenGrid(Frozen):
    r"""What any method whose grid is known before the data may leave: the scale, the zero point and
    the shift of the thresholds themselves.

    Example:
        >>> from torch_geometric_qlr.config import QuantizerConfig
        >>> from torch_geometric_qlr.quantizers import build_quantizer
        >>> quantizer = build_quantizer(QuantizerConfig(bits=2, method="lsq"))
        >>> _ = quantizer(torch.tensor([0.0, 1.0, 2.0, 3.0]))
        >>> FrozenGrid.of(quantizer)
        FrozenGrid(bits=2, granularity='tensor', range='fixed')
    """

    scale: Tensor
    zero_point: Tensor
    shift: Tensor | None

    @classmethod
    def of(cls, quantizer: Quantizer) -> FrozenGrid:
        r"""Freezes a quantizer; growing ends. They share no state.

        Args:
            quantizer (Quantizer): One whose grid is known before the data; it stays as it is.
        """
        with torch.no_grad():
            scale, zero_point, shift = quantizer.code_params(quantizer.calibrated)
        numbers = {
            n: t.reshape(quantizer.shape) for n, t in (("scale", scale), ("zero_point", zero_point))
        }
        return cls._holding(numbers | ({} if shift is None else {"shift": shift}), quantizer)

    @property
    def is_static(self) -> bool:
        return True

    def _found(self, x: Tensor, exact_zero: bool = False, skew: Tensor | None = None) -> CodeParams:
        # Copies, so that numbers which were handed out stay what they were after a load.
        zero_point = self.groups.beside(self.zero_point).clone()
        if exact_zero:
            step = truncation_step(self.bits) if self.config.truncates else 1
            zero_point = torch.round(zero_point / step) * step
        shift = self._buffers.get("shift")
        shift = None if shift is None else shift.clone()
        return self.groups.beside(self.scale).clone(), zero_point, shift


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def freeze_ranges(quantizers: nn.Module) -> None:
    r"""Puts a frozen quantizer in the place of every quantizer inside of a module.

    Args:
        quantizers (torch.nn.Module): A :class:`torch.nn.ModuleDict` or the like.
    """
    for name, child in list(quantizers.named_children()):
        if isinstance(child, Quantizer):
            quantizers.register_module(name, child.freeze())
        else:
            freeze_ranges(child)
