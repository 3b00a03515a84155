"""From a journal back to the hub that wrote it. The rest it learns again from the members' beats."""

from __future__ import annotations

from collections.abc import Sequence

from tsugi_kpool.core.effects import HubPlan
from tsugi_kpool.core.journal import FORMAT, BadJournal, Entry
from tsugi_kpool.core.records import Began

from .changes import apply
from .hub import Hub


def began(plan: HubPlan) -> Entry:
    """The first entry of a run's journal."""
    return Entry(0.0, Began(plan.run, plan.config_hash, plan.replicas, FORMAT))


def replay(plan: HubPlan, entries: Sequence[Entry], now_s: float) -> Hub:
    """The hub as its journal leaves it, ready to go on at `now_s`.

    It has heard nobody yet: it fires nothing before every member has beaten, and then says again whatever the beats
    show that somebody has missed. A round in flight stays in flight, with the Reduced that were acknowledged.

    Raises:
        BadJournal: the journal is of another run, or its records do not follow from each other.
    """
    first = began(plan).record
    if not entries or entries[0].record != first:
        raise BadJournal(
            f"it is not the journal of this run: it begins with {entries[0].record if entries else None}"
        )
    # The run's clock goes on where the journal stopped: time without a hub does not count.
    hub = Hub(plan, now_s - entries[-1].at_s)
    hub.resumed = True
    for number, entry in enumerate(entries, 1):
        try:
            apply(hub, entry.record, now_s)
        except (LookupError, RuntimeError, ValueError) as error:
            raise BadJournal(f"line {number}, {type(entry.record).__name__}, does not follow: {error}") from error
    return hub
