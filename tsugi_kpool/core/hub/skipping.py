"""Micro-batches that replicas leave out, because their loss is no number: counted, and too many end the run."""

from __future__ import annotations

from tsugi_kpool.core.effects import Effect, Send
from tsugi_kpool.core.messages import Ack, Discarded
from tsugi_kpool.core.records import Skipped

from .changes import keep
from .endings import fail
from .state import HubState

LISTED = 10
"""Of those that a failed run names; the events have them all."""


def skipped(state: HubState, message: Discarded) -> list[Effect]:
    """A replica has left out micro-batches. A message that comes again is acknowledged again."""
    acknowledged: list[Effect] = [Send(message.replica, Ack(message.seq))]
    if (message.incarnation, message.seq) in state.skipped:
        return acknowledged
    who = message.replica, message.incarnation, message.seq
    effects = [*keep(state, Skipped(*who, message.reason, message.skipped, message.tokens)), *acknowledged]
    count, most = sum(each.batches for each in state.skipped.values()), state.plan.bad_batches
    if most is None or count <= most:
        return effects
    return effects + fail(state, too_many(count, most, [each.reason for each in state.skipped.values()]))


def too_many(count: int, most: int, reasons: list[str]) -> str:
    """Why the run ends, with the places of what was left out."""
    rest = f"\nand {len(reasons) - LISTED} more" if len(reasons) > LISTED else ""
    listed = "\n".join(reasons[:LISTED])
    return (
        f"{count} micro-batches had no finite loss and were left out, where train.max_bad_batches allows {most}; "
        f"checkpoints are kept:\n{listed}{rest}"
    )
