"""The exchange of a simulated fleet: parts come in over links, a round closes by the real rule, results go out.

The hub's machine has one link for all: parts queue on their way in, results on their way out. The process can be
killed: parts that had come are gone and are given again, a result that was on its disk is there again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tsugi_kpool.core.messages import Fire
from tsugi_kpool.core.replica.stage import Stage
from tsugi_kpool.core.rounds.closing import REPORTERS, Awaited, Quorum, closes_s, grace_of, missed

from .kernel import Kernel
from .replica import Contribution, Replica, SimulatedResult
from .scenario import LinkModel

RETRY_S = 0.1
"""Whoever is frozen or cut off, or finds no exchange, tries again so often."""
LOST_S = 0.02
"""After this time the exchange sees that a member's connection has broken."""
Key = tuple[int, int]


@dataclass(frozen=True)
class Shared:
    """A round's result, as the exchange keeps it."""

    fire: Fire
    result: SimulatedResult
    counted: tuple[int, ...]
    durables: tuple[int, ...]
    incarnations: tuple[str, ...]
    tokens: tuple[int, ...]

    @property
    def reporters(self) -> tuple[int, ...]:
        """Who tells the hub whose parts are in it."""
        return self.counted[:REPORTERS]


@dataclass
class _Collecting:
    fire: Fire
    began_s: float
    awaited: Awaited
    parts: dict[int, tuple[Replica, Contribution]] = field(default_factory=dict)
    joined_s: dict[int, float] = field(default_factory=dict)
    late: list[tuple[Replica, Contribution]] = field(default_factory=list)
    """Who has come after it was closed, and before there was a result."""
    enough_s: float | None = None
    closed: bool = False


class _Queue:
    """One direction of the hub's link."""

    def __init__(self, bandwidth: float) -> None:
        self._bandwidth, self._free_s = bandwidth, 0.0

    def through_s(self, now_s: float, size: int) -> float:
        """Return when so many bytes that are ready now have passed."""
        self._free_s = max(now_s, self._free_s) + size / self._bandwidth
        return self._free_s


class SimulatedExchange:
    """Collects, closes, and hands out. One for each fleet.

    Args:
        kernel: Schedules.
        link: Everybody's link; the hub's is as fast as a replica's.
        quorum: Whom a round waits for.
        reachable: Whether a replica can send and receive at present.
        done: A member has the result, and whether its own part is in it.
        reduce: What a round amounts to, of the parts of these members, in their order, after so many seconds.
    """

    def __init__(
        self,
        kernel: Kernel,
        link: LinkModel,
        quorum: Quorum,
        reachable: Callable[[Replica], bool],
        done: Callable[[Replica, Shared, float], None],
        reduce: Callable[[Fire, Mapping[int, Contribution], float], SimulatedResult],
    ) -> None:
        self._kernel, self._link, self._quorum = kernel, link, quorum
        self._reachable, self._done, self._reduce = reachable, done, reduce
        self._in, self._out = _Queue(link.hub_bytes_per_s), _Queue(link.hub_bytes_per_s)
        self._collecting: _Collecting | None = None
        self._periods: tuple[float | None, float | None] = None, None
        self._misses: dict[int, int] = {}
        self._gone_s: dict[int, float] = {}
        self._lives, self._down = 0, False
        self.kept: dict[Key, Shared] = {}
        """Every result; a check looks at those that the hub has committed."""
        self._newest: tuple[Key, ...] = ()
        """The rounds whose results it still hands out: the newest two."""
        self.refused: Callable[[Replica, Fire], None] | None = None
        """Told of a member's part of a round whose result is lost; set before the first round."""
        self.full = False
        """Its disk takes nothing."""
        self._unwritten: set[Key] = set()
        self._lost_until: Key = (0, 0)
        """Of rounds up to this one a process that was killed may have handed out what no disk has."""
        self.lost = 0
        """Parts of rounds that are over and whose results are not kept."""
        self.late = 0
        """Parts that came after their round was closed."""

    # --- parts --------------------------------------------------------------------------------------------

    def give(self, replica: Replica, fire: Fire, part: Contribution, fetches: bool = False) -> None:
        """A member has a part for this round, or knows that it is committed and fetches what it amounts to."""
        if not self._waits(replica, fire):
            return
        if not self._reachable(replica) or self._down:
            self._kernel.after(RETRY_S, self.give, replica, fire, part, fetches)
            return
        self._gone_s.pop(replica.number, None)
        now_s, size = self._kernel.now_s, 0 if fetches else self._payload(fire)
        here_s = now_s
        if replica.number not in self._link.on_hub:
            own_s = now_s + self._link.latency_s + self._own_s(replica, size)
            here_s = max(own_s, self._in.through_s(now_s + self._link.latency_s, size))
        self._kernel.at(here_s, self._arrive, replica, fire, part, self._lives, now_s)

    def _arrive(self, replica: Replica, fire: Fire, part: Contribution, life: int, joined_s: float) -> None:
        if life != self._lives or (replica.closed is False and not self._reachable(replica)):
            self._kernel.after(RETRY_S, self.give, replica, fire, part)
            return
        if replica.closed:
            return  # it died with its part half sent
        here, known = (fire.generation, fire.round), self._known(_key(fire))
        if known is not None:
            self.late += replica.number not in known.counted
            self._hand_out(replica, known, joined_s)
            return
        if here <= self._lost_until:
            self._refuse(replica, fire)
            return
        collecting = self._collecting
        if collecting is None or _key(collecting.fire) < here:
            collecting = self._collecting = _Collecting(fire, self._kernel.now_s, Awaited(fire.members, self._misses))
            self._periods = self._periods[1], self._kernel.now_s
        elif _key(collecting.fire) > here:
            self.lost += 1  # the fleet has gone on: the hub's next order tells its sender
            return
        collecting.joined_s[replica.number] = joined_s
        if collecting.closed:
            if replica.number not in collecting.parts:
                self.late += 1
                collecting.late.append((replica, part))
            return  # it is handed the result when there is one
        collecting.parts[replica.number] = replica, part
        collecting.awaited.came(replica.number)
        if collecting.enough_s is None and len(collecting.parts) >= self._quorum.needed(len(fire.members)):
            collecting.enough_s = self._kernel.now_s
        self._look()

    def _refuse(self, replica: Replica, fire: Fire) -> None:
        if self._waits(replica, fire) and self.refused is not None:
            self.refused(replica, fire)

    def written(self, shared: Shared) -> bool:
        """Return whether a result is on the disk; else the hub commits it when all have voted."""
        return _key(shared.fire) not in self._unwritten

    def _known(self, key: Key) -> Shared | None:
        return self.kept[key] if key in self._newest else None

    def lose(self, replica: int) -> None:
        """A member's process has died, and its connection with it."""
        self._kernel.after(LOST_S, self._lost, replica)

    def _lost(self, replica: int) -> None:
        self._gone_s[replica] = self._kernel.now_s
        self._look()

    # --- rounds -------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Close the round that comes in if that is due, or look again when it is."""
        collecting = self._collecting
        if collecting is None or collecting.closed or self._down:
            return
        now_s, at_s = self._kernel.now_s, self._closes_s(collecting)
        if at_s <= now_s:
            self._close(collecting)
        elif at_s < math.inf:
            self._kernel.at(at_s, self._look)

    def _closes_s(self, collecting: _Collecting) -> float:
        if len(collecting.parts) == len(collecting.fire.members):
            return -math.inf
        before_s, began_s = self._periods
        period_s = None if before_s is None or began_s is None else began_s - before_s
        took_s = (collecting.enough_s or 0.0) - collecting.began_s
        missing = collecting.awaited.kinds(self._gone_s, collecting.began_s)
        return closes_s(self._quorum, grace_of(self._quorum, period_s, took_s), collecting.enough_s, missing)

    def _close(self, collecting: _Collecting) -> None:
        collecting.closed = True
        self._misses = missed(self._misses, collecting.fire.members, collecting.parts)
        size = self._payload(collecting.fire)
        seconds = size * self._link.combine_s_per_byte * len(collecting.parts)
        self._kernel.after(seconds, self._finish, collecting, self._lives)

    def _finish(self, collecting: _Collecting, life: int) -> None:
        if life != self._lives:
            return  # killed before the result was on its disk: the round is collected again
        fire = collecting.fire
        counted = tuple(member for member in fire.members if member in collecting.parts)
        parts = {member: collecting.parts[member][1] for member in counted}
        result = self._reduce(fire, parts, self._kernel.now_s - collecting.began_s)
        self._newest = (*self._newest[-1:], _key(fire))
        shared = self.kept[_key(fire)] = Shared(
            fire,
            result,
            counted,
            tuple(part.shipment.durable for part in parts.values()),
            tuple(collecting.parts[member][0].incarnation for member in counted),
            tuple(sum(part.shipment.tokens) for part in parts.values()),
        )
        if self.full:
            self._unwritten.add(_key(fire))
        else:
            self._unwritten.clear()
        for member in counted:
            self._hand_out(collecting.parts[member][0], shared, collecting.joined_s[member])
        for replica, _ in collecting.late:
            self._hand_out(replica, shared, collecting.joined_s[replica.number])

    def _hand_out(self, replica: Replica, shared: Shared, joined_s: float) -> None:
        now_s, size = self._kernel.now_s, self._payload(shared.fire)
        here_s = now_s
        if replica.number not in self._link.on_hub:
            own_s = now_s + self._link.latency_s + self._own_s(replica, size)
            here_s = max(own_s, self._out.through_s(now_s, size) + self._link.latency_s)
        self._kernel.at(here_s, self._deliver, replica, shared, joined_s, self._lives)

    def _deliver(self, replica: Replica, shared: Shared, joined_s: float, life: int) -> None:
        if not self._waits(replica, shared.fire):
            return
        if life != self._lives or not self._reachable(replica):
            self._kernel.after(RETRY_S, self._again, replica, shared, joined_s)
            return
        self._done(replica, shared, joined_s)

    def _again(self, replica: Replica, shared: Shared, joined_s: float) -> None:
        """It was cut off: it asks for what it has not got, as soon as it can."""
        if self._waits(replica, shared.fire):
            if self._down or not self._reachable(replica):
                self._kernel.after(RETRY_S, self._again, replica, shared, joined_s)
            elif _key(shared.fire) <= self._lost_until and self._known(_key(shared.fire)) is None:
                self._refuse(replica, shared.fire)
            else:
                self._hand_out(replica, shared, joined_s)

    # --- its lives ----------------------------------------------------------------------------------------

    def kill(self, down_s: float) -> None:
        """Its process dies; another one goes on from its disk."""
        self._lives += 1
        self._down = True
        self._lost_until = max(self._unwritten, default=self._lost_until)
        self._newest = tuple(each for each in self._newest if each not in self._unwritten)
        collecting, self._collecting = self._collecting, None
        self._gone_s.clear()
        self._misses.clear()
        self._kernel.after(down_s, self._restart, collecting)

    def _restart(self, collecting: _Collecting | None) -> None:
        self._down = False
        if collecting is not None and _key(collecting.fire) not in self.kept:
            for replica, part in [*collecting.parts.values(), *collecting.late]:
                self.give(replica, collecting.fire, part)

    def _own_s(self, replica: Replica, size: int) -> float:
        """Return what so many bytes take on a replica's own link."""
        return size * self._link.slowness(replica.number) / self._link.bandwidth_bytes_per_s

    def _payload(self, fire: Fire) -> int:
        return self._link.adapter_bytes * len(fire.adapters)

    def _waits(self, replica: Replica, fire: Fire) -> bool:
        here = (replica.generation, replica.round) == (fire.generation, fire.round)
        return here and replica.stage is Stage.IN_FLIGHT and not replica.closed


def _key(fire: Fire) -> Key:
    return fire.generation, fire.round
