"""What the hub's decisions need before they leave it: which of them must be written down first, and their frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from tsugi_kpool.core.effects import Effect, Keep, Send
from tsugi_kpool.core.messages import DataPart, Fire, FleetStatus, Message, Stamps, encode
from tsugi_kpool.core.records import AnyRecord, RoundReduced

from .hub import BEAT_ACK
from .tickets import Tickets

TELEMETRY = frozenset({Stamps, FleetStatus, DataPart})
"""Answers that say nothing of what has been decided."""

Answer = tuple[Effect, bytes | None]
"""An effect, and the route of the message that it answers (None: it answers none)."""


class Writing(NamedTuple):
    """What a turn of the hub means for its journal."""

    records: Sequence[AnyRecord]
    """To be noted, in this order."""
    flush: bool
    """All that is noted must be on the medium before anything of this turn is sent."""


NOTHING_TO_WRITE = Writing((), False)


def writing(answers: Sequence[Answer], waiting: bool) -> Writing:
    """What has to be written down before a turn's answers are carried out.

    One flush is for all records of the turn. From RoundReduced nothing follows before the last
    one or the next tick: they wait for that.

    Args:
        answers: All that the turn has decided.
        waiting: Whether something of an earlier turn is noted and not on the medium.
    """
    records = [effect.record for effect, _ in answers if type(effect) is Keep]
    if not records and not waiting:
        return NOTHING_TO_WRITE
    decided = any(type(each) is not RoundReduced for each in records)
    return Writing(records, decided or any(map(_follows, answers)))


def _follows(answer: Answer) -> bool:
    """Whether this is sent on the strength of what is written down."""
    effect = answer[0]
    return type(effect) is Send and type(effect.message) not in TELEMETRY and effect.message is not BEAT_ACK


class Frames:
    """Messages as frames. An order goes to every member, one after the other: it is encoded once.

    Args:
        tickets: Shown to the exchange.
    """

    def __init__(self, tickets: Tickets | None = None) -> None:
        self._tickets = tickets or Tickets()
        self._newest: tuple[Message | None, bytes] = (None, b"")

    def of(self, message: Message) -> bytes:
        """This message as a frame.

        Raises:
            BadFrame: it does not fit into one.
        """
        if self._newest[0] is not message:
            self._newest = (message, encode(thin(self._tickets.put(message))))
        return self._newest[1]


def thin(message: Message) -> Message:
    """A Fire without its members, who get it: they know them from Generation, and a thousand numbers are 3 KB."""
    return msgspec.structs.replace(message, members=()) if type(message) is Fire else message
