"""Imports dependencies without what they say then, which is meant for their own developers."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any, cast

# A torch with CUDA on a machine without a GPU: said as Brevitas imports its loader of extensions.
_LOGGERS = ("torch.utils.cpp_extension",)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Neither warnings nor log lines inside; the filters that dependencies set themselves stay."""
    loggers = [logger for logger in map(logging.getLogger, _LOGGERS) if not logger.disabled]
    warnings.filterwarnings("ignore", message=".*")
    everything = warnings.filters[0]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger in loggers:
            logger.disabled = False
        cast("list[Any]", warnings.filters).remove(everything)
