"""Which replica somebody who comes from another machine is to be."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass, field, replace

from tsugi_kpool.core.bucket import Bucket
from tsugi_kpool.core.effects import HubPlan
from tsugi_kpool.core.events import TurnedAway
from tsugi_kpool.core.likeness import MAY, About, unlike
from tsugi_kpool.core.messages import Refused, Slot

HELD_S = 30.0
"""A place is free when nobody has asked for it again, or its replica has not been heard, for this time."""
UNHEARD_S = 6.0
"""Whoever gets ready asks for its place every five seconds, and a replica beats: longer silence is unusual."""
LOADING_S = 3600.0
"""... or has been asked for so long without a replica that joined: nobody keeps a place from others for ever."""
GIVEN_PER_S, GIVEN_AT_ONCE = 0.1, 16
"""So many new places are given, besides one for each replica: each is a line of the journal."""
MOST_TURNED_AWAY = 100
"""Events of machines that were not let in."""
ENDED = "this run has ended"
TOO_EARLY = "it is too early"
NONE_MISSING = "no replica is missing"
"""How a refusal begins: `tsugi join` takes its exit code from it."""
ABOUT_TO = "the others are about to"
UNHEARD = "has not been heard lately"
"""How one ends that may not stand: a place is given that nobody may come for any more."""
BUSY = "too many places were asked for lately: ask again in a minute"


@dataclass(frozen=True)
class _Held:
    """A place that was given."""

    replica: int
    asked_s: float
    """When it was last asked for."""
    since_s: float
    """Since when it has been asked for without a pause."""


@dataclass
class Slots:
    """The replicas that other machines bring: each is given to one asker at a time."""

    replicas: range
    run: str
    config: str
    config_hash: str
    exchange: str = ""
    """Certificate of the run's exchange; empty where there is none."""
    about: About = field(default_factory=dict)
    """Of the hub's machine."""
    data: str = ""
    listing: str = ""
    resumed: str = ""
    guests: dict[int, About] = field(default_factory=dict)
    """By replica, what the machine that has its place says of itself. Not written down."""
    _turned_away: set[tuple[str, str]] = field(default_factory=set)
    _held: dict[str, _Held] = field(default_factory=dict)
    """By ticket, one for each replica at most. Who is gone stays until the place is given to another."""
    _giving: Bucket = field(init=False)

    @staticmethod
    def of_plan(plan: HubPlan) -> Slots:
        """Those of a run."""
        told = (plan.run, plan.config, plan.config_hash, plan.exchange, plan.about, plan.data, plan.listing)
        return Slots(plan.elsewhere, *told, plan.resumed)

    def __post_init__(self) -> None:
        self._giving = Bucket(GIVEN_PER_S, GIVEN_AT_ONCE + 2 * len(self.replicas))

    def of(self, ticket: str) -> int | None:
        """The replica that this ticket has, if it has one."""
        return self._held[ticket].replica if ticket in self._held else None

    def held(self, ticket: str) -> bool:
        """Whether this ticket has a place, and the connection that it was given over has not closed."""
        return ticket in self._held and self._held[ticket].asked_s > -math.inf

    def ticket_of(self, replica: int) -> str | None:
        """Who has this replica's place, if somebody has."""
        return next((ticket for ticket, held in self._held.items() if held.replica == replica), None)

    def may_give(self, now_s: float) -> bool:
        """Whether another place may be given now; then it counts."""
        return self._giving.takes(now_s)

    def free(self, joined: set[int], now_s: float, most: int) -> int | None:
        """The lowest replica that nobody is, or None.

        Args:
            joined: Replicas that have joined.
            now_s: The hub's clock.
            most: How many replicas there may be at present.
        """
        taken = joined | {
            held.replica
            for held in self._held.values()
            if now_s - held.asked_s <= HELD_S and now_s - held.since_s <= LOADING_S
        }
        return next((replica for replica in self.replicas if replica < most and replica not in taken), None)

    def hold(self, ticket: str, replica: int, now_s: float) -> None:
        """This ticket has this replica, and has just asked for it."""
        before = self._held.get(ticket)
        goes_on = before is not None and before.replica == replica and now_s - before.asked_s <= HELD_S
        since_s = before.since_s if before is not None and goes_on else now_s
        self.release(replica)
        self._held[ticket] = _Held(replica, now_s, since_s)

    def closed(self, ticket: str) -> None:
        """The connection that this ticket has asked over has closed: its place is free, and still its own until
        somebody else gets it."""
        if (held := self._held.get(ticket)) is not None:
            self._held[ticket] = replace(held, asked_s=-math.inf)

    def release(self, replica: int) -> None:
        """Whoever was to be this replica is not to be it any more."""
        self._held = {ticket: held for ticket, held in self._held.items() if held.replica != replica}

    def answer(self, ticket: str, committed: bool = False) -> Slot:
        """What a ticket that has a place is told.

        Args:
            ticket: Its own.
            committed: A round has been: newcomers get the fleet's state from a member, and need no checkpoint. Before
                that all members may leave, and those who come after them begin.
        """
        place = (ticket, self._held[ticket].replica, self.run, self.config, self.config_hash)
        return Slot(
            *place,
            exchange=self.exchange,
            about=dict(self.about),
            data=self.data,
            listing=self.listing,
            resumed="" if committed else self.resumed,
        )

    def turned_away(self, host: str, reason: str, replica: int | None = None) -> list[TurnedAway]:
        """The event that tells of a machine that was not let in: once for each machine and reason, and not without
        end."""
        if (host, reason) in self._turned_away or len(self._turned_away) >= MOST_TURNED_AWAY:
            return []
        self._turned_away.add((host, reason))
        return [TurnedAway(host, reason, replica)]

    def likely(self, replica: int) -> str:
        """The version that may be why what a replica's machine has made differs, in words; empty: none is known."""
        found = unlike(self.guests.get(replica, {}), self.about, MAY)
        return "" if found is None else f" ({found})"

    def unheard(self, joined: Set[int], now_s: float) -> set[int]:
        """The replicas that have been given to somebody, have not joined, and were not asked for lately."""
        return {
            held.replica
            for held in self._held.values()
            if held.replica not in joined and now_s - held.asked_s > UNHEARD_S
        }

    def refusal(self, joined: Set[int], most: int, unheard: Set[int] = frozenset()) -> Refused:
        """Why there is no place among those that there may be at present (`most`).

        Args:
            joined: Replicas that have joined.
            most: How many replicas there may be.
            unheard: Those of them, and of the places that are given, of which nothing is heard.
        """
        if not self.replicas:
            return Refused("this run starts all its replicas itself (topology.here)")
        ours = joined & set(self.replicas)
        here = f"{len(ours)} of {len(self.replicas)} have joined"
        if self.replicas.stop > most:
            return Refused(f"{TOO_EARLY}: {here}; more may when the run has begun")
        if unheard:
            return Refused(f"{NONE_MISSING}: {here}, but replica {min(unheard)} {UNHEARD}")
        return Refused(f"{NONE_MISSING}: {here}" + (f", {ABOUT_TO}" if len(ours) < len(self.replicas) else ""))


def may_pass_s(reason: str) -> float:
    """Return for how long it is worth asking again after this refusal; 0: it stands.

    Who was killed gives nothing back: its place is free when its connection has closed, or it was silent for HELD_S.
    """
    if UNHEARD in reason:
        return HELD_S + UNHEARD_S
    return UNHEARD_S + 2.0 if reason.endswith(ABOUT_TO) else 0.0
