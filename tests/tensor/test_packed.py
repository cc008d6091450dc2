"""PackedTensor: round trips, rows, files, and what it refuses."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_geometric_qlr import ops
from torch_geometric_qlr.errors import CheckpointError, ConfigError, InputError
from torch_geometric_qlr.tensor import OutputQuantizer, PackedTensor, linear, sparse_linear, spmm

ONE, ZERO = torch.tensor(1.0), torch.tensor(0.0)


def random_packed(seed: int, rows: int, cols: int, bits: int, axis: str) -> PackedTensor:
    rng = torch.Generator().manual_seed(seed)
    shape = {"tensor": (), "row": (rows, 1), "column": (1, cols)}[axis]
    codes = torch.randint(2**bits, (rows, cols), generator=rng, dtype=torch.uint8)
    scale = torch.rand(shape, generator=rng) + 0.1
    return PackedTensor.from_codes(codes, scale, torch.rand(shape, generator=rng), bits)


packed_strategy = st.builds(
    random_packed,
    st.integers(0, 2**31),
    st.integers(0, 9),
    st.sampled_from((1, 5, 16, 33, 64, 100, 130, 300)),
    st.sampled_from((1, 2, 4, 8)),
    st.sampled_from(("tensor", "row", "column")),
)


@given(packed_strategy)
def test_saved_and_loaded_is_equal(packed):
    file = io.BytesIO()
    torch.save(packed.to_state(), file)
    file.seek(0)
    loaded = PackedTensor.from_state(torch.load(file, weights_only=True))
    assert loaded.equal(packed)
    assert torch.equal(loaded.dequantize(), packed.dequantize())


@given(packed_strategy)
def test_codes_round_trip(packed):
    again = PackedTensor.from_codes(packed.unpack(), packed.scale, packed.zero_point, packed.bits)
    assert again.equal(packed)
    truth = packed.scale * (packed.unpack().float() - packed.zero_point)
    assert torch.equal(packed.dequantize(), truth)


@given(packed_strategy, st.data())
def test_rows_are_selected_with_their_parameters(packed, data):
    rows = len(packed)
    stop = data.draw(st.integers(0, rows))
    part = packed[1:stop]
    assert torch.equal(part.dequantize(), packed.dequantize()[1:stop])
    if rows:
        index = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1))), dtype=torch.long)
        chosen = packed.index_select(index)
        assert torch.equal(chosen.dequantize(), packed.dequantize()[index])


@pytest.mark.parametrize("bits", (1, 2, 3, 4, 5, 8))
@pytest.mark.parametrize("truncate", (False, True))
def test_from_float_is_fake_quantization(bits, truncate):
    x = torch.randn(20, 50)
    scale, zero = torch.tensor(0.1), torch.tensor(2.0 if not truncate else 100.0)
    packed = PackedTensor.from_float(x, scale, zero, bits, truncate=truncate)
    truth, _ = ops.reference.fake_quantize(x, ops.QParams(scale, zero, bits, truncate=truncate))
    assert torch.equal(packed.dequantize(), truth)
    assert packed.bits == ops.storage_bits(bits)


def test_memory_is_bits_over_32():
    x = torch.rand(1000, 128)
    for bits in (1, 2, 4, 8):
        packed = PackedTensor.from_float(x, ONE, ZERO, bits)
        assert packed.data.nbytes == x.nbytes * bits // 32
        assert packed.to_state()["codes"].nbytes == x.nbytes * bits // 32


def test_copies_and_pickles():
    packed = random_packed(0, 4, 70, 2, "row")
    assert copy.deepcopy(packed).equal(packed)
    assert pickle.loads(pickle.dumps(packed)).equal(packed)
    assert packed.to("cpu").equal(packed)
    assert not packed.equal(random_packed(1, 4, 70, 2, "row"))
    assert packed.granularity == "row"
    assert "bits=2" in repr(packed)


@pytest.mark.parametrize("bad", (float("nan"), float("inf"), float("-inf")))
def test_nan_and_inf_are_refused_with_their_place(bad):
    x = torch.ones(3, 4)
    x[2, 1] = bad
    with pytest.raises(InputError, match=r"x\[2, 1\]"):
        PackedTensor.from_float(x, ONE, ZERO, bits=4)


def test_bad_input():
    x = torch.ones(3, 4)
    codes = torch.full((3, 4), 3, dtype=torch.uint8)
    with pytest.raises(InputError, match="dense matrix"):
        PackedTensor.from_float(x[0], ONE, ZERO, bits=4)
    with pytest.raises(InputError, match="int64"):
        PackedTensor.from_float(x.long(), ONE, ZERO, bits=4)
    with pytest.raises(InputError, match="scale has shape"):
        PackedTensor.from_float(x, torch.ones(3), ZERO, bits=4)
    with pytest.raises(InputError, match="different dimensions"):
        PackedTensor.from_float(x, torch.ones(3, 1), torch.ones(1, 4), bits=4)
    with pytest.raises(ConfigError, match="bits"):
        PackedTensor.from_float(x, ONE, ZERO, bits=9)
    with pytest.raises(InputError, match="does not fit into 1 bits"):
        PackedTensor.from_codes(codes, ONE, ZERO, bits=1)
    with pytest.raises(InputError, match="uint8"):
        PackedTensor(codes, 4, 2, ONE, ZERO)
    packed = PackedTensor.from_codes(codes, ONE, ZERO, bits=2)
    with pytest.raises(InputError, match="index_select"):
        packed[1]
    with pytest.raises(InputError, match="out of range"):
        packed.index_select(torch.tensor([3]))
    with pytest.raises(ConfigError, match="equal"):
        packed == packed  # noqa: B015


def damage(state: dict, name: str) -> dict:
    """Ways a file can be wrong."""
    broken = {key: value.clone() for key, value in state.items()}
    if name == "missing":
        del broken["codes"]
    elif name == "short":
        broken["codes"] = broken["codes"][:-1]
    elif name == "version":
        broken["header"][0] = 99
    elif name == "bits":
        broken["header"][1] = 3
    elif name == "tail":
        broken["codes"][-1] = 255
    elif name == "scale":
        broken["scale"] = torch.tensor(float("nan"))
    elif name == "shape":
        broken["scale"] = torch.ones(7, 1)
    elif name == "kind":
        broken["codes"] = "codes"
    return broken


@pytest.mark.parametrize(
    "name", ("missing", "short", "version", "bits", "tail", "scale", "shape", "kind")
)
def test_damaged_files_are_refused(name):
    state = random_packed(0, 3, 5, 2, "tensor").to_state()
    with pytest.raises(CheckpointError):
        PackedTensor.from_state(damage(state, name))


def test_layers_chain_without_floats():
    x = random_packed(0, 6, 40, 4, "tensor")
    weight = random_packed(1, 20, 40, 4, "row")
    out = OutputQuantizer(torch.tensor(0.5), torch.tensor(8.0), 2, truncate=True)
    hidden = linear(x, weight, relu=True, out=out)
    assert isinstance(hidden, PackedTensor)
    rowptr, col = torch.tensor([0, 2, 2, 3]), torch.tensor([5, 1, 1])
    y = spmm(rowptr, col, hidden, reduce="mean")
    values = hidden.dequantize()
    truth = torch.stack([(values[5] + values[1]) / 2, torch.zeros(20), values[1]])
    torch.testing.assert_close(y, truth, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="must agree"):
        linear(x, hidden)


def test_sparse_features_times_packed_weight():
    x = torch.rand(5, 30) * (torch.rand(5, 30) < 0.2)
    csr = x.to_sparse_csr()
    weight = random_packed(0, 30, 12, 4, "column")
    y = sparse_linear(csr.crow_indices(), csr.col_indices(), csr.values(), weight)
    torch.testing.assert_close(y, x @ weight.dequantize(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", (-1, -4096, 2**40, 2.0, True))
def test_widths_are_not_taken_at_their_word(columns):
    with pytest.raises((InputError, ConfigError)):
        PackedTensor(torch.zeros(0, 16, dtype=torch.uint8), columns, 2, ONE, ZERO)


@pytest.mark.parametrize("part", ("data", "scale", "zero_point"))
def test_parts_are_tensors_on_one_device(part):
    parts = {"data": torch.zeros(3, 16, dtype=torch.uint8), "scale": ONE, "zero_point": ZERO}
    with pytest.raises(InputError, match=part):
        PackedTensor(num_cols=4, bits=2, **{**parts, part: 1.0})
    with pytest.raises(InputError, match="one device"):
        PackedTensor(num_cols=4, bits=2, **{**parts, part: parts[part].to("meta")})


@pytest.mark.parametrize("size", ([2**40, 0], [0, 2**60], [2**31, 2**31], [-1, 5], [5, -1]))
def test_sizes_of_a_forged_file_are_not_allocated(size):
    state = random_packed(0, 3, 5, 2, "tensor").to_state()
    state["header"][2:] = torch.tensor(size)
    state["codes"] = state["codes"][:0]
    with pytest.raises(CheckpointError):
        PackedTensor.from_state(state)


def test_empty_matrices_are_saved_and_read():
    for shape in ((0, 5), (4, 0), (0, 0)):
        codes = torch.zeros(shape, dtype=torch.uint8)
        packed = PackedTensor.from_codes(codes, ONE, ZERO, bits=2)
        assert PackedTensor.from_state(packed.to_state()).equal(packed)
        assert packed.dequantize().shape == shape
