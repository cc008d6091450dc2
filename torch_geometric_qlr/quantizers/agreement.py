"""How the processes that train one model come to the same ranges.

Each sees its own batches, and they train the same parameters. Nobody may wait for a process that
its batch does not lead to the same place.

What is *open*, because its first batch is still to come, starts from the batches of all processes:
they meet, see :meth:`Agreement.meet`. What is known already *moves*, with what passes in those
processes that are at the same place of their forward, see :meth:`Agreement.exchange`: as many
exchanges as there are such places, whatever the batch meets on its way, and the host reads nothing.
At the end of the forward, which every process reaches, all of it is settled once more.

What has something to say there is a generator. It yields a vector, is sent the vectors of all
processes as the rows of a matrix, and may go on. Who has not been at the place speaks, too.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_geometric_qlr.quantizers.processes import Group, gather

__all__ = ["Agreement", "Conversation", "Opens", "agreement", "converse", "set_agreement"]

#: Yields a vector, is sent those of all processes as rows.
Conversation = Generator[Tensor, Tensor, None]


class Opens(ABC):
    """Something with numbers that its first batch starts."""

    @abstractmethod
    def start_together(self, noted: Any) -> Conversation:
        r"""Starts the numbers from the batches of all processes.

        Args:
            noted (Any): What the batch of this process has shown; :obj:`None` if it has not come
                here. The vectors are as long, and as many, in either case.
        """


class Agreement:
    r"""One training forward in several processes.

    While something is open, processes meet: each says where it is, those that are at the earliest
    place speak with all the others and go on, and the others say again where they are. At the end
    of its forward a process is at the last place, until all are.

    Args:
        group (Group): The processes.
        places (dict): What is open; and for what will move, how many numbers it exchanges. In the
            same order in every process.
        device (torch.device): Of the model.
    """

    def __init__(
        self, group: Group, places: Mapping[Any, Opens | int], device: torch.device
    ) -> None:
        self.group = group
        self._places = list(places.items())
        self._ahead = {key: place for place, key in enumerate(places)}
        self._meets = any(isinstance(what, Opens) for what in places.values())
        moves = [what for what in places.values() if isinstance(what, int)]
        self._exchanges, self._width = len(moves), 1 + max(moves, default=0)
        self._nowhere = torch.full((self._width,), -1.0, dtype=torch.double, device=device)
        self._noted: dict[Any, Any] = {}

    def opens(self, key: Any) -> bool:
        """Whether it is still open."""
        return key in self._ahead and isinstance(self._places[self._ahead[key]][1], Opens)

    @torch.no_grad()
    def meet(self, key: Any, noted: Any) -> None:
        r"""Starts what is open, from what all processes have noted.

        Args:
            key (Any): Of what is open.
            noted (Any): For its :meth:`Opens.start_together`.
        """
        self._noted[key], place = noted, self._ahead[key]
        while key in self._ahead:
            self._go_on_from(place)

    @torch.no_grad()
    def exchange(self, key: Any, told: Tensor) -> tuple[Tensor, Tensor]:
        r"""What is told at a place where something moves, once in a forward: by all processes, if
        they come here in the same order, and at least by this one.

        Args:
            key (Any): Of what moves.
            told (torch.Tensor): As many numbers as were announced.

        Returns:
            tuple: What each process has told, as rows, and which of them are here.
        """
        place = self._ahead.get(key, -1)
        if place < 0:
            return told.view(1, -1), torch.ones_like(told[:1], dtype=torch.bool)
        sent = told.new_zeros(self._width)
        sent[0], sent[1 : 1 + told.numel()] = place, told
        if self._meets:
            self._noted[key] = sent
            while key in self._ahead:
                self._go_on_from(place)
            rows = self._noted.pop(key)
        else:
            del self._ahead[key]
            self._exchanges -= 1
            rows = gather(sent, self.group)
        return rows[:, 1 : 1 + told.numel()], rows[:, 0] == place

    def note(self, key: Any, noted: Any) -> None:
        """Keeps what somebody has seen until the end of the forward."""
        self._noted[key] = noted

    def noted(self, key: Any) -> Any:
        """What was kept, or :obj:`None`."""
        return self._noted.get(key)

    @torch.no_grad()
    def end(self) -> None:
        """Returns when all processes have come to the end of the forward."""
        if self._meets:
            while self._go_on_from(len(self._places)) < len(self._places):
                pass
        else:
            for _ in range(self._exchanges):  # that others have had, or nobody
                gather(self._nowhere, self.group)

    def _go_on_from(self, place: int) -> int:
        """Lets speak who is at the earliest of the places where processes are."""
        own = torch.full((1,), place, device=self._nowhere.device)
        earliest = int(gather(own, self.group).min())
        if earliest < len(self._places):
            key, what = self._places[earliest]
            del self._ahead[key]
            noted = self._noted.pop(key, None)
            if isinstance(what, Opens):
                converse([what.start_together(noted)], self.group)
            else:
                rows = gather(self._nowhere if noted is None else noted, self.group)
                self._noted |= {} if noted is None else {key: rows}
        return earliest


def converse(conversations: Iterable[Conversation], group: Group) -> None:
    r"""Lets all of them speak in lockstep, with one gathering per round.

    Args:
        conversations (iterable): In the same order in every process.
        group (Group): The processes.
    """
    speaking = [(c, said) for c in conversations if (said := next(c, None)) is not None]
    while speaking:
        device = speaking[0][1].device
        told = [said.double().reshape(-1).to(device) for _, said in speaking]
        heard = gather(torch.cat(told), group).split([len(part) for part in told], dim=1)
        answers = zip(speaking, heard, strict=True)
        sent = [(c, _send(c, answer.to(said.device))) for (c, said), answer in answers]
        speaking = [(c, said) for c, said in sent if said is not None]


def _send(conversation: Conversation, heard: Tensor) -> Tensor | None:
    try:
        return conversation.send(heard)
    except StopIteration:
        return None


class _Running(threading.local):
    agreement: Agreement | None = None


_RUNNING = _Running()


def agreement() -> Agreement | None:
    """That of the forward which runs in this thread; :obj:`None` for a process alone."""
    return None if torch.compiler.is_compiling() else _RUNNING.agreement


def set_agreement(found: Agreement | None) -> None:
    r"""Sets what :func:`agreement` gives.

    Args:
        found (Agreement, optional): That of a forward that begins.
    """
    _RUNNING.agreement = found
