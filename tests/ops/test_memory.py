"""Memory of large results: aligned, never shared while in use, and used again."""

from __future__ import annotations

import gc
import mmap

import pytest
import torch

from torch_geometric_qlr.ops import memory, release_memory

pytestmark = pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no huge pages to ask for"
)
LARGE = (3 << 20, 2)


def idle() -> int:
    gc.collect()
    return len(memory._POOL._idle)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    gc.collect()
    release_memory()


def test_small_results_come_from_torch() -> None:
    x = memory.empty((3, 4), torch.float32)
    del x
    assert idle() == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32])
def test_large_results_begin_on_a_huge_page(dtype: torch.dtype) -> None:
    x = memory.empty(LARGE, dtype)
    assert x.shape == LARGE and x.dtype == dtype and x.is_contiguous()
    assert x.data_ptr() % (2 << 20) == 0
    x.fill_(1)
    assert bool((x == 1).all())


def test_memory_in_use_is_not_handed_out() -> None:
    x = memory.empty(LARGE, torch.uint8).fill_(1)
    part = x[5:]
    del x
    y = memory.empty(LARGE, torch.uint8).fill_(2)
    assert bool((part == 1).all()) and bool((y == 2).all())


def test_memory_is_used_again_once_it_is_free() -> None:
    x = memory.empty(LARGE, torch.uint8)
    at = x.data_ptr()
    del x
    assert idle() == 1
    assert memory.empty(LARGE, torch.uint8).data_ptr() == at


def test_a_small_result_does_not_take_a_large_mapping() -> None:
    x = memory.empty((64 << 20, 1), torch.uint8)
    del x
    y = memory.empty(LARGE, torch.uint8)
    assert idle() == 1
    del y


def test_what_lies_idle_is_bounded_and_can_be_released() -> None:
    held = [memory.empty((40 << 20, 1), torch.uint8) for _ in range(9)]
    held.clear()
    gc.collect()
    assert 0 < sum(map(len, memory._POOL._idle)) <= memory._MAX_IDLE
    release_memory()
    assert idle() == 0
