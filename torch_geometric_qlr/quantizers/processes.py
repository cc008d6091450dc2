"""Which processes train one model, and how they exchange numbers."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from torch_geometric_qlr.errors import InputError

__all__ = ["Group", "gather", "processes", "take_first"]

#: A process group of torch.distributed; :obj:`None` is the default group.
Group = Any


def processes() -> tuple[bool, Group]:
    r"""Whether there are several processes, and their group: that of the running
    :class:`~torch.nn.parallel.DistributedDataParallel`, or else the default one.

    Raises:
        InputError: If processes may run out of batches one by one (``with model.join()``), for
            then nobody can wait for all of them.

    Example:
        >>> processes()
        (False, None)
    """
    if not (dist.is_available() and dist.is_initialized()):
        return False, None
    parallel: Any = DistributedDataParallel._get_active_ddp_module()
    if parallel is not None and parallel._join_config.enable:
        raise InputError(
            "the ranges of a quantized model are those of the batches of all processes, which "
            "join() lets end one by one. Give each process as many batches: "
            "DistributedSampler(drop_last=True), or stop at the shortest loader."
        )
    group = None if parallel is None else parallel.process_group
    return dist.get_world_size(group) > 1, group


def gather(vector: Tensor, group: Group) -> Tensor:
    r"""The vectors of all processes, as rows.

    Args:
        vector (torch.Tensor): As long in each of them.
        group (Group): Who they are.
    """
    # On other devices gloo does not gather.
    sent = vector.cpu() if dist.get_backend(group) == "gloo" else vector.contiguous()
    rows = sent.new_empty(dist.get_world_size(group), sent.numel())
    dist.all_gather(list(rows.unbind()), sent, group=group)
    return rows.to(vector.device)


def take_first(tensor: Tensor, group: Group) -> None:
    r"""Copies what the first process has.

    Args:
        tensor (torch.Tensor): Changed in place in the others.
        group (Group): Who they are.
    """
    dist.broadcast(tensor, 0 if group is None else dist.get_global_rank(group, 0), group=group)
