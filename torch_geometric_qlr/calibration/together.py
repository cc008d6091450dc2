"""What several processes have counted, added up."""

from __future__ import annotations

import torch

from torch_geometric_qlr.calibration.histogram import Histogram
from torch_geometric_qlr.calibration.watch import Watch
from torch_geometric_qlr.quantizers import Quantizer
from torch_geometric_qlr.quantizers.agreement import Conversation, converse
from torch_geometric_qlr.quantizers.processes import Group

__all__ = ["join_others", "joined"]


@torch.no_grad()
def joined(watches: dict[str, Watch], group: Group) -> dict[str, Watch]:
    r"""What all processes have seen, in new watches: counting may go on with the old ones. Bins
    are powers of two, so the sums are those of one process that has seen everything.

    Args:
        watches (dict): What this process has seen, in the same order in every process.
        group (Group): The processes.
    """
    new = {name: watch.copy() for name, watch in watches.items()}
    converse((_cover_all(watch.histogram) for watch in new.values()), group)
    converse((_add_up(watch) for watch in new.values()), group)
    return new


def _cover_all(histogram: Histogram) -> Conversation:
    groups = histogram.lo.numel()
    rows = yield torch.cat([-histogram.lo, histogram.hi])
    most = rows.amax(0).float()
    histogram.cover(-most[:groups], most[groups:])


def _add_up(watch: Watch) -> Conversation:
    # A count below 2**53 is one in double precision, too.
    histogram = watch.histogram
    numbers = watch.powers.new_full((1,), histogram.num_values)
    rows = yield torch.cat([numbers, watch.powers, histogram.counts.double().reshape(-1)])
    total = rows.sum(0)
    histogram.num_values = int(total[0])
    watch.powers = total[1:5]
    histogram.counts = total[5:].long().view_as(histogram.counts)


def join_others(quantizers: list[Quantizer], group: Group) -> None:
    r"""What evaluation has left of the parameters without a histogram, made one.

    Args:
        quantizers (list): In the same order in every process.
        group (Group): The processes.
    """
    with torch.no_grad():
        converse((q.grow_together() for q in quantizers), group)
