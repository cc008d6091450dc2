"""Weights as packed codes, in memory and, without padding, on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torch_geometric_qlr.errors import CheckpointError, InputError
from torch_geometric_qlr.ops import storage_bits
from torch_geometric_qlr.quantizers import Quantizer
from torch_geometric_qlr.quantizers.signature import KEY, Signature, differences
from torch_geometric_qlr.tensor import PackedTensor

__all__ = ["PackedWeight"]

#: What torch notes in the metadata of a state that is to replace tensors, not to fill them.
_ASSIGNS = "assign_to_params_buffers"
_NAMES = ("header", "codes", "scale", "zero_point")


class PackedWeight(nn.Module):
    r"""The codes of one weight, in place of the quantizer that made them.

    The ``state_dict`` holds the dense stream of bits of
    :meth:`~torch_geometric_qlr.tensor.PackedTensor.to_state`, and the signature of the quantizer.

    Args:
        packed (PackedTensor): The weight as a matrix.
        shape (torch.Size): Its own shape.
        path (str): Where it sits, for error messages.
        signature (Signature, optional): Of the quantizer that made the codes; if it is not known,
            that of the first state which is loaded.
    """

    data: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        packed: PackedTensor,
        shape: torch.Size,
        path: str = "",
        signature: Signature | None = None,
    ) -> None:
        super().__init__()
        self.signature = signature
        self.bits, self.num_cols, self.shape, self.path = packed.bits, packed.num_cols, shape, path
        self.register_buffer("data", packed.data)
        self.register_buffer("scale", packed.scale)
        self.register_buffer("zero_point", packed.zero_point)
        self._packed: PackedTensor | None = None
        self._transposed: PackedTensor | None = None

    @classmethod
    @torch.no_grad()
    def from_quantizer(cls, quantizer: Quantizer, weight: Tensor) -> PackedWeight:
        r"""The codes that a quantizer gives a weight.

        Args:
            quantizer (Quantizer): The weight's quantizer.
            weight (torch.Tensor): The float weight.
        """
        cls.start(quantizer, weight)
        matrix = quantizer.groups.matrix(weight)
        scale, zero_point, skew = quantizer.code_params(matrix)
        if matrix.dim() != 2:
            matrix = weight.reshape(weight.size(0) if weight.dim() else 1, -1)
        try:
            packed = PackedTensor.from_float(
                *(matrix, scale.detach(), zero_point.detach(), quantizer.bits),
                truncate=quantizer.config.truncates,
                skew=skew,
            )
        except InputError as error:
            raise InputError(f"{quantizer.path or 'weight'}: {error}") from None
        return cls(packed, weight.shape, quantizer.path, Signature.of(quantizer))

    @staticmethod
    @torch.no_grad()
    def start(quantizer: Quantizer, weight: Tensor) -> None:
        """Starts the range of a weight that has not been used yet."""
        if not quantizer.has_range:
            quantizer(weight)

    @classmethod
    def empty(
        cls, bits: int, matrix: tuple[int, int], shape: torch.Size, path: str = ""
    ) -> PackedWeight:
        r"""A weight whose codes are loaded next.

        Args:
            bits (int): Width of a code.
            matrix (tuple): Rows and columns of the packed matrix.
            shape (torch.Size): Shape of the weight.
            path (str): Where it sits, for error messages.
        """
        codes = torch.zeros((), dtype=torch.uint8).expand(matrix)
        return cls(
            PackedTensor.from_codes(codes, torch.ones(()), torch.zeros(()), bits), shape, path
        )

    @property
    def packed(self) -> PackedTensor:
        """The weight as a packed matrix, the same object as long as its tensors are."""
        made = self._packed
        if made is None or not self.packs(made):
            made = PackedTensor(self.data, self.num_cols, self.bits, self.scale, self.zero_point)
            if not torch.compiler.is_compiling():
                self._packed = made
        return made

    def packs(self, made: PackedTensor) -> bool:
        r"""Whether a matrix is made of its tensors.

        Args:
            made (PackedTensor): What :attr:`packed` was once.
        """
        parts = self._buffers
        return (
            made.data is parts["data"]
            and made.scale is parts["scale"]
            and made.zero_point is parts["zero_point"]
        )

    def transposed(self) -> PackedTensor:
        """Its transpose, made when sparse features first ask for it."""
        if self._transposed is None:
            with torch.inference_mode(False), torch.no_grad():
                packed = self.packed
                self._transposed = PackedTensor.from_codes(
                    packed.unpack().t().contiguous(),
                    packed.scale.t() if packed.scale.dim() else packed.scale,
                    packed.zero_point.t() if packed.zero_point.dim() else packed.zero_point,
                    packed.bits,
                )
        return self._transposed

    def dequantize(self) -> Tensor:
        """The values the codes stand for, in the shape of the weight."""
        return self.packed.dequantize().view(self.shape)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedWeight:
        # Scales stay in float32, as the ranges they come from.
        def keep_dtype(tensor: Tensor) -> Tensor:
            out = fn(tensor)
            return out if out.dtype == tensor.dtype else tensor.to(out.device)

        super()._apply(keep_dtype, recurse)
        self._packed = self._transposed = None
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination |= {f"{prefix}{name}": t for name, t in self.packed.to_state().items()}
        if self.signature is not None:
            destination[prefix + KEY] = self.signature.to_tensor()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {prefix + name for name in (*_NAMES, KEY)}
        if strict:
            unexpected_keys += [k for k in state_dict if k.startswith(prefix) and k not in own]
            if self.signature is not None and prefix + KEY not in state_dict:
                missing_keys.append(prefix + KEY)
        missing = [prefix + name for name in _NAMES if prefix + name not in state_dict]
        if missing:
            missing_keys += missing
            return
        self._load_codes(state_dict, prefix, keeps=local_metadata.get(_ASSIGNS, False))

    def _load_codes(self, state: dict[str, Any], prefix: str, keeps: bool) -> None:
        """Takes the codes of a state, all of them or nothing."""
        where = self.path or prefix[:-1]
        try:
            loaded = PackedTensor.from_state({name: state[prefix + name] for name in _NAMES})
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from error
        if (loaded.shape, loaded.bits) != (self.packed.shape, self.bits):
            raise CheckpointError(
                f"{where}: the checkpoint holds {list(loaded.shape)} codes at {loaded.bits} bits, "
                f"the model {list(self.packed.shape)} at {self.bits}. Convert a model of the same "
                f"configuration and load into that."
            )
        for difference in differences(state, prefix, self.signature):
            raise CheckpointError(difference)
        if self.signature is None and prefix + KEY in state:
            self.signature = self._signature_for(state[prefix + KEY], where)
        loaded = loaded if keeps else loaded.to(self.data.device)
        self.data, self.scale, self.zero_point = loaded.data, loaded.scale, loaded.zero_point
        self._packed = self._transposed = None

    def _signature_for(self, state: Any, where: str) -> Signature:
        """The signature of a state, if codes of this width can have it."""
        try:
            signature = Signature.from_tensor(state)
        except ValueError as error:
            raise CheckpointError(f"{where}: the checkpoint has {error}.") from error
        if storage_bits(signature.bits) != self.bits:
            raise CheckpointError(
                f"{where}: the checkpoint holds codes of {self.bits} bits, and says that they "
                f"were made with {signature.bits}; it is damaged."
            )
        return signature

    def extra_repr(self) -> str:
        return f"shape={list(self.shape)}, bits={self.bits}"
