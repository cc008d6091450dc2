"""The product of packed rows with a matrix of int8, by the integer units of the tensor cores."""

from __future__ import annotations

import triton
import triton.language as tl

from torch_geometric_qlr.ops.triton.kernels.codes import at_row, parameters, round_even
from torch_geometric_qlr.ops.triton.kernels.ending import finish, write_columns
from torch_geometric_qlr.ops.triton.kernels.products import INTERPRETED

__all__ = ["linear_kernel", "signed_kernel"]

#: What one instruction of the tensor cores takes of a row, and a unit of bytes at most.
_DEEP = tl.constexpr(32)


@triton.jit
def signed_kernel(
    packed,
    out,
    sums,
    ROWS: tl.constexpr,
    OTHER: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
):
    """One row of weights to a program: codes as int8, those of 8 bits less 128, and their sum. They
    lie as the rows that they are multiplied with are read, by units and by fields of these."""
    row = tl.program_id(0)
    at = tl.arange(0, WIDTH)
    j, k = at % _DEEP, (at // _DEEP) % (8 // OTHER.bits)
    f = ((at // (_DEEP * (8 // OTHER.bits))) * (8 // OTHER.bits) + k) * OTHER.unit + j
    inside = (j < OTHER.unit) & (f < ROWS.cols)
    UNIT: tl.constexpr = ROWS.unit
    byte = (f // (UNIT * (8 // ROWS.bits))) * UNIT + f % UNIT
    word = tl.load(packed + row * ROWS.stride + byte, mask=inside, other=0).to(tl.int32)
    code = (word >> (ROWS.bits * ((f // UNIT) % (8 // ROWS.bits)))) & ((1 << ROWS.bits) - 1)
    code = tl.where(inside, code - 128 if ROWS.bits == 8 else code, 0)
    tl.store(out + row * STRIDE + at, code.to(tl.int8), mask=at < STRIDE)
    tl.store(sums + row, tl.sum(code, axis=0))


@triton.jit
def _field(x, k: tl.constexpr, BITS: tl.constexpr):
    """Field k of bytes as int8, of four at once; codes of 8 bits less 128."""
    if INTERPRETED:
        if BITS == 8:
            code = (x ^ 128).to(tl.int8, bitcast=True)
        else:
            code = ((x >> (BITS * k)) & ((1 << BITS) - 1)).to(tl.int8)
    elif BITS == 8:
        code = tl.inline_asm_elementwise(
            "xor.b32 $0, $1, 0x80808080;", "=r,r", [x], tl.int8, is_pure=True, pack=4
        )
    else:
        # Constants are operands: the text is one for all fields.
        mask = tl.full(x.shape, (1 << BITS) - 1, tl.uint8)
        shift = tl.full(x.shape, BITS * k, tl.uint8)
        code = tl.inline_asm_elementwise(
            "{ .reg .b32 t; and.b32 t, $3, 31; shr.b32 t, $1, t; and.b32 $0, t, $2; }",
            "=r,r,r,r",
            [x, mask, shift],
            tl.int8,
            is_pure=True,
            pack=4,
        )
    return code


@triton.jit
def linear_kernel(
    packed,
    affine,
    weight,
    weight_sums,
    weight_affine,
    after,
    out,
    n,
    ROWS: tl.constexpr,
    END: tl.constexpr,
    WEIGHT_AXIS: tl.constexpr,
    WEIGHT_BITS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
):
    """HEIGHT rows and WIDTH columns of the result to a program. Each byte is read once, and each of
    its fields multiplied with the columns that it holds, of weights that are zero elsewhere."""
    row = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    live = row < n
    first = tl.program_id(1) * WIDTH
    o = first + tl.arange(0, WIDTH)
    j = tl.arange(0, _DEEP)
    USED: tl.constexpr = ROWS.used
    acc = tl.zeros((HEIGHT, WIDTH), tl.int32)
    # The sums of the codes of rows come out of the same units, as a product with ones.
    sums, ones = tl.zeros((HEIGHT, 16), tl.int32), tl.full((_DEEP, 16), 1, tl.int8)
    at = at_row(row, ROWS.stride, ROWS.wide)[:, None]
    for begin in range(0, ROWS.stride, _DEEP):
        ok = live[:, None] & (begin + j < ROWS.stride)[None, :]
        x = tl.load(packed + (at + begin + j[None, :]), mask=ok, other=0)
        for k in tl.static_range(USED):
            f = begin * (8 // ROWS.bits) + k * _DEEP + j
            w = tl.load(weight + (o[None, :] * STRIDE + f[:, None]))  # padded: no mask
            code = _field(x, k, ROWS.bits)
            acc = tl.dot(code, w, acc, out_dtype=tl.int32)
            sums = tl.dot(code, ones, sums, out_dtype=tl.int32)
    x_sum = tl.max(sums, axis=1)  # of sixteen that are equal
    if ROWS.bits == 8:  # bytes beyond the last column count as -128
        x_sum += 128 * (tl.cdiv(ROWS.stride, _DEEP) * _DEEP - ROWS.cols)
    y = _product(
        acc,
        x_sum,
        row,
        live,
        o,
        affine,
        weight_sums,
        weight_affine,
        ROWS,
        END,
        WEIGHT_AXIS,
        WEIGHT_BITS,
    )
    y = finish(y, x_sum, row, live, o, after, END)
    write_columns(y, first, row, live, out, END)


@triton.jit
def _product(
    acc,
    x_sum,
    row,
    live,
    o,
    affine,
    weight_sums,
    weight_affine,
    ROWS: tl.constexpr,
    END: tl.constexpr,
    WEIGHT_AXIS: tl.constexpr,
    WEIGHT_BITS: tl.constexpr,
):
    """What the sums of products of codes stand for. Whole parts of zero points are taken off in
    integers, so that no digit is lost."""
    inside = o < END.cols
    s, z = parameters(affine.scale, affine.zero, row, live, o, inside, END.axis)
    ws, wz = parameters(weight_affine.scale, weight_affine.zero, row, live, o, inside, WEIGHT_AXIS)
    if ROWS.bits == 8:
        z -= 128.0
    if WEIGHT_BITS == 8:
        wz -= 128.0
    z_whole = round_even(tl.minimum(tl.maximum(z, -256.0), 256.0))
    wz_whole = round_even(tl.minimum(tl.maximum(wz, -256.0), 256.0))
    zi, wzi = z_whole.to(tl.int32), wz_whole.to(tl.int32)
    w_rest = tl.load(weight_sums + o, mask=inside, other=0)[None, :] - ROWS.cols * wzi
    x_rest = x_sum[:, None] - ROWS.cols * zi
    whole = acc - wzi * x_sum[:, None] - zi * w_rest
    z, wz = z - z_whole, wz - wz_whole
    y = tl.fma(-wz, x_rest.to(tl.float32), whole.to(tl.float32))
    y = tl.fma(-z, w_rest.to(tl.float32), y) + (ROWS.cols * z) * wz
    return y * (s * ws)
