"""Memory of results: never shared while in use, used again, aligned where they are large."""

from __future__ import annotations

import gc
import mmap

import pytest
import torch
from torch import Tensor

from tests.helpers.kernel_cases import ISAS
from torch_geometric_qlr.ops import release_memory
from torch_geometric_qlr.ops.cpu.memory import idle_memory

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(
        not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no huge pages to ask for"
    ),
    pytest.mark.skipif(not ISAS, reason="the C++ kernels are not built here"),
    pytest.mark.skipif(TORCH < (2, 11), reason="this torch takes no memory of others"),
]
ROWS = 400_000  # of 16 bytes
MAX_IDLE = 256 << 20


def result(fill: int = 0, rows: int = ROWS) -> Tensor:
    """A result of an op, all of one value."""
    return torch.ops.qlr.unpack(torch.full((rows, 16), fill, dtype=torch.uint8), 16, 8)


def idle() -> int:
    gc.collect()
    return idle_memory()[0]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    gc.collect()
    release_memory()


def test_small_results_come_from_torch() -> None:
    x = result(rows=3)
    del x
    assert idle() == 0


def test_large_results_begin_on_a_huge_page() -> None:
    scale, zero = torch.tensor(0.5), torch.tensor(1.0)
    packed = torch.full((ROWS, 16), 3).byte()
    values = torch.ops.qlr.dequantize_packed(packed, 16, 8, scale, zero)
    x_hat, mask = torch.ops.qlr.fake_quantize(values, scale, zero, 8)
    for x, dtype in ((result(1), torch.uint8), (x_hat, torch.float32), (mask, torch.bool)):
        assert x.shape == (ROWS, 16) and x.dtype == dtype and x.is_contiguous()
        assert x.data_ptr() % (2 << 20) == 0
        assert bool((x == 1).all())


def test_memory_in_use_is_not_handed_out() -> None:
    x = result(1)
    part = x[5:]
    del x
    y = result(2)
    assert bool((part == 1).all()) and bool((y == 2).all())


def test_memory_is_used_again_once_it_is_free() -> None:
    x = result()
    at = x.data_ptr()
    del x
    assert idle() == 1
    assert result().data_ptr() == at


def test_results_of_a_step_on_small_graphs_take_no_new_pages() -> None:
    import resource

    x, one = torch.randn(800, 64), torch.ones(())

    def step() -> None:
        held = [torch.ops.qlr.fake_quantize(x, one, one, 8) for _ in range(20)]
        held.clear()

    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    step()
    step()
    before = faults()
    for _ in range(20):
        step()
    assert faults() - before < 20 * 50  # of 20 * 1250 pages that are written to
    assert idle() >= 20


def test_a_small_result_does_not_take_a_large_mapping() -> None:
    x = result(rows=10 * ROWS)
    del x
    kept = idle_memory()
    y = result()
    assert kept[0] and idle_memory()[1] >= 60 << 20
    del y


def test_what_lies_idle_is_bounded_and_can_be_released() -> None:
    held = [result(rows=6 * ROWS) for _ in range(9)]
    held.clear()
    assert idle() and 0 < idle_memory()[1] <= MAX_IDLE
    release_memory()
    assert idle_memory() == (0, 0)
