"""Micro-batches that replicas leave out, because their loss is no number: counted, and too many end the run."""

from __future__ import annotations

from tsugi_kpool.core.effects import Effect, Event, Send
from tsugi_kpool.core.messages import Ack, Discarded

from .endings import fail
from .state import HubState

LISTED = 10
"""Of those that a failed run names; the events have them all."""


def skipped(state: HubState, message: Discarded) -> list[Effect]:
    """A replica has left out micro-batches. A message that comes again is acknowledged again."""
    key = message.incarnation, message.seq
    acknowledged: list[Effect] = [Send(message.replica, Ack(message.seq))]
    if key in state.skipped:
        return acknowledged
    state.skipped[key] = message
    told = {
        "replica": message.replica,
        "reason": message.reason,
        "batches": message.skipped,
        "tokens": message.tokens,
    }
    effects = [Event("skipped", told), *acknowledged]
    count, most = sum(each.skipped for each in state.skipped.values()), state.plan.bad_batches
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
