"""The end of a run whose replicas are on other machines: its last checkpoint and the adapter come here.

Whoever waits is told who gives what, how much of it is here, and what Ctrl-C costs. Every wait has an end.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tsugi_cli.console.format import size
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.signals import Signals
from tsugi_kpool.core.events import Note
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.slot_requests import wants_adapter, with_adapter

from .collecting import Collecting
from .hub import Serving
from .summary import adapter_at
from .watch import TURN_S, RunningFleet

SAY_S = 5.0
"""Period of saying how far it is; what comes in less is not talked of."""


def bring_home(fleet: RunningFleet, serving: Serving, paths: RunPaths, signals: Signals) -> None:
    """Wait until replicas of other machines have given the last checkpoint and the adapter, where this machine has
    none; Ctrl-C ends it."""
    before = signals.count

    def wait(goes_on: Callable[[], bool], words: Callable[[], str]) -> None:
        said_s = time.monotonic()
        while goes_on() and signals.count == before and fleet.hub.alive:
            fleet.turn()
            fleet.process_watch.wait(TURN_S)
            if time.monotonic() - said_s >= SAY_S:
                said_s = time.monotonic()
                fleet.console.message(words())

    wait(lambda: fleet.checkpoints.comes, lambda: checkpoint_words(fleet, serving))
    if not fleet.hub.ask(wants_adapter) or not (tickets := fleet.hub.ask(with_adapter)):
        return
    collecting = serving.collecting
    collecting.begin()
    wait(lambda: collecting.pending(tickets), lambda: adapter_words(fleet, collecting))
    for text in fleet.hub.ask(lambda hub: brought(hub, collecting, paths)):
        fleet.recorder.tell(Note(text))


def checkpoint_words(fleet: RunningFleet, serving: Serving) -> str:
    """Return how far the last checkpoint is, and what is lost without it."""
    newest = fleet.checkpoints.newest_folder()
    stays = f"the newest one here is {newest.name}" if newest else "there is none here yet"
    lost = f"Ctrl-C ends the wait: then {stays}, and what was trained after it can only be gone on from elsewhere"
    found = serving.arrivals.coming()
    if found is None:
        return f"nobody gives the last checkpoint yet. {lost}"
    replica, come, total = found
    who = fleet.hub.ask(lambda hub: _named(hub, replica))
    return f"{who} gives the last checkpoint: {size(come)} of {size(total)}. {lost}"


def adapter_words(fleet: RunningFleet, collecting: Collecting) -> str:
    """Return how far the adapter is, and what is lost without it."""
    there = ", ".join(fleet.hub.ask(adapter_at)) or "no machine"
    lost = f"Ctrl-C ends the wait: then the adapter is on {there} alone"
    found = collecting.coming()
    if found is None:
        return f"nobody gives the adapter yet. {lost}"
    ticket, come, total = found
    who = fleet.hub.ask(lambda hub: _named(hub, hub.slots.of(ticket)))
    return f"{who} gives the adapter: {size(come)} of {size(total)}. {lost}"


def brought(hub: Hub, collecting: Collecting, paths: RunPaths) -> list[str]:
    """Return what has become of the adapter, in words, each in a line; nothing where it was here."""
    refused = dict(collecting.problems)  # of each ticket the newest reason
    said = [
        f"the adapter of {_named(hub, hub.slots.of(ticket))} was not taken: {why}"
        for ticket, why in refused.items()
        if ticket != collecting.given_by
    ]
    if (replica := hub.slots.of(collecting.given_by)) in hub.members:
        return [*said, f"the adapter has come from {_named(hub, replica)}"]
    if paths.adapter.exists():
        return said
    return [*said, f"no replica has given its adapter to this machine; it is on {', '.join(adapter_at(hub))}"]


def _named(hub: Hub, replica: int | None) -> str:
    member = hub.members.get(replica) if replica is not None else None
    return f"replica {replica} ({member.hello.host})" if member is not None else "a replica that has left"
