"""The rounds of a run as the hub keeps them: which is in flight, who has reduced it, what has been committed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tsugi_kpool.core.messages import Check, Checked, Commit, Fire, Reduced
from tsugi_kpool.core.rounds.noise import Noise
from tsugi_kpool.core.rounds.selection import Selection
from tsugi_kpool.core.rounds.statements import Verify, nobody
from tsugi_kpool.core.rounds.trigger import Reason
from tsugi_kpool.core.settings import KPool, SelectAt

from .comparison import Comparison
from .round_reports import RoundReports
from .tickets import Tickets
from .votes import VoteBook

ROUND_GRACE_S = 5.0
"""The hub gives a round this much longer than the members' own deadline, which ends it with a better reason."""


class RoundBook:
    """At most one round is in flight; versions count the committed ones."""

    def __init__(self, kpool: KPool, exchange: bool = False) -> None:
        self._kpool, self._exchange = kpool, exchange
        self.version = 0
        self.number = 0
        """The newest round's number."""
        self.fired_in = 0
        """The newest round's generation."""
        self.in_flight: Fire | None = None
        self.newest_commit: Commit | None = None
        self.landed: Fire | None = None
        """The newest round that was committed."""
        self.votes = VoteBook()
        """On the newest committed round, and what all have said of the present anchors."""
        self.reports = RoundReports()
        """Of the newest round."""
        self.newest_shared = 0
        """The newest committed round that the exchange has reduced."""
        self.noise = Noise()
        self.pace = 0.0
        """Steps that the fleet makes while its usual member makes one; 0 before it was looked at."""
        self.paced: tuple[int, int] | None = None
        """Generation and version for which it was looked at."""
        self.by_reason: dict[str, int] = {}
        self.aborted = 0
        self._fired_s = 0.0
        self.check: Check | None = None
        """The round in flight is reduced everywhere, and an owner of it is checked."""
        self._checked: dict[int, tuple[int, ...]] = {}
        self._check_s = 0.0
        self.comparison: Comparison | None = None
        """The round in flight is reduced everywhere and not alike, and its members say what they have been told."""
        self.verify: Verify = nobody
        """Checks what they show, given by the hub's own host."""
        self.lottery = ""
        """The secret of the draw who is checked, given by the hub's own host; empty: nobody is."""
        self.tickets = Tickets()
        """Check what members say that the exchange has said; given by the hub's own host as well."""
        self.selection = Selection(kpool)

    def due(self) -> tuple[int, ...]:
        """The adapters that the next round ships; chosen once between two rounds, asked for on every beat."""
        return self.selection.due

    @property
    def active(self) -> tuple[int, ...]:
        """The adapters that train until the next commit, as the orders say it: empty when all do."""
        return self.due() if self._kpool.select_at is SelectAt.TRAIN else ()

    def next_fire(self, generation: int, adapters: tuple[int, ...], members: tuple[int, ...], reason: Reason) -> Fire:
        """The order that would open the next round."""
        number, shared = self.number + 1, self.newest_shared
        return Fire(generation, number, adapters, members, reason, self.version, self.active, shared)

    def open(self, fire: Fire, now_s: float) -> None:
        """A round is in flight."""
        self.number, self.fired_in, self.check, self.comparison = fire.round, fire.generation, None, None
        self.by_reason[fire.reason] = self.by_reason.get(fire.reason, 0) + 1
        self.in_flight, self._fired_s = fire, now_s
        self.reports = RoundReports(fire.members, self.shared)

    def expects(self, reduced: Reduced) -> bool:
        """Whether this is news: a member of the round in flight has not reported before."""
        fire = self.in_flight
        if self.votes.is_late(reduced):
            return True
        if fire is None or (reduced.generation, reduced.round) != (fire.generation, fire.round):
            return False
        if reduced.replica not in self.reports.awaited:
            return False
        if self.shared:
            return len(reduced.weights) == len(reduced.counted) == len(reduced.durables)
        return reduced.replica != fire.members[0] or len(reduced.weights) == len(fire.members)

    @property
    def shared(self) -> bool:
        """Whether the round in flight is an exchange's. Who is alone needs none."""
        return self._exchange and self.in_flight is not None and len(self.in_flight.members) > 1

    def survives(self, replica: int) -> bool:
        """Whether the round in flight goes on when this member leaves: an exchange makes it of the others' parts."""
        fire = self.in_flight
        return self.shared and fire is not None and replica in fire.members and replica not in self.reports.gone

    def go_on_without(self, replica: int) -> None:
        """A member of the round in flight has left: its report is not waited for. Its part may count all the same."""
        self.reports.go_on_without(replica)

    def forget(self, replica: int, now_s: float) -> None:
        """A member has left: its vote on the round that was committed last is not waited for, and counts no more."""
        if self.votes.forget(replica):
            self._fired_s = now_s

    def on_reduced(self, reduced: Reduced, now_s: float) -> None:
        """A member's collective has ended."""
        if not self.votes.is_late(reduced):
            self.reports.take(reduced)
        elif self.votes.take(reduced):
            self._fired_s = now_s  # who was behind has as much time for the next round as others

    def open_check(self, check: Check, now_s: float) -> None:
        """An owner of the round in flight, which has been reduced everywhere, is checked."""
        self.check, self._checked, self._check_s = check, {}, now_s

    def on_checked(self, checked: Checked) -> None:
        """A member has done its part of the check; of another one nothing is taken in."""
        check, fire = self.check, self.in_flight
        if check is None or fire is None or checked.replica not in fire.members:
            return
        said = (checked.generation, checked.round, checked.owner, checked.checkers)
        if said == (check.generation, check.round, check.owner, len(check.checkers)):
            self._checked.setdefault(checked.replica, checked.wrong)

    @property
    def checked(self) -> dict[int, tuple[int, ...]]:
        """Whom each member that has done its part has found to be wrong."""
        return self._checked

    @property
    def awaited(self) -> set[int]:
        """Members that have not reduced the round in flight, or not done their part of its check or comparison."""
        if self.comparison is not None:
            return self.comparison.awaited
        if self.check is None or self.in_flight is None:
            return self.reports.awaited
        return set(self.in_flight.members) - set(self._checked)

    @property
    def reduced_on(self) -> int:
        """Members on which the round in flight has been reduced; 0 when none is."""
        return len(self.in_flight.members) - len(self.reports.awaited) if self.in_flight is not None else 0

    @property
    def complete(self) -> bool:
        """Whether the round in flight has been reduced everywhere."""
        return self.in_flight is not None and not self.reports.awaited

    @property
    def decided(self) -> bool:
        """Whether enough members have reduced the round in flight to settle it. Not before all have voted on
        the round before."""
        return self.in_flight is not None and self.votes.behind is None and self.reports.decided

    def missing(self, now_s: float) -> list[int]:
        """Members that have not reduced it although the round is overdue; the one before first."""
        since_s = self._fired_s if self.check is None else self._check_s
        if self.comparison is not None:
            since_s = self.comparison.since_s
        if now_s - since_s <= self._kpool.round_timeout_s + ROUND_GRACE_S:
            return []
        if self.votes.behind is not None:
            return sorted(self.votes.behind.awaited)
        return sorted(self.awaited) if self.in_flight is not None else []

    @property
    def unreported(self) -> bool:
        """Whether all that are left have reduced the round in flight alike, and nobody of them has said whose parts
        are in it."""
        return self.decided and self.reports.of_one_word and self.reports.for_all() is None

    @property
    def agreed(self) -> bool:
        """Whether the round in flight can be committed: it is decided, with one digest, and of usable parts, and no
        owner is under a check."""
        alike = self.decided and self.check is None and self.reports.of_one_word
        return alike and self.reports.for_all() is not None

    def facts(self) -> dict[str, Any]:
        """What is worth recording of the round in flight, which has been reduced everywhere."""
        fire, reduced = self._complete()
        weights = self.weights()
        return {
            "round": fire.round,
            "version": self.version + 1,
            "seconds": self.reports.seconds(),
            "payload_bytes": reduced.payload_bytes,
            "weights": tuple(weights.get(member, 0) for member in fire.members),
            "digest": reduced.digest,
        }

    def commit(self, pooled: Sequence[int], step_s: float = 0.0) -> dict[int, int]:
        """The round in flight counts; returns each member's committed tokens.

        Args:
            pooled: Steps that all members have buffered for each adapter, by their newest beats.
            step_s: What a step takes, by the same beats; for `kpool.k=auto`.
        """
        fire, reduced = self._complete()
        self.version += 1
        self.selection.timed(len(fire.adapters), reduced.payload_bytes, self.reports.transfer_s(), step_s)
        self.selection.committed(fire, reduced.adapters, pooled)
        self.check = None
        weights = self.weights()
        missed = tuple(member for member in fire.members if member not in weights)
        self.newest_commit = Commit(fire.generation, fire.round, self.active, missed=missed)
        self.newest_shared = fire.round if self.shared else self.newest_shared
        self.landed = fire
        self.votes.committed(fire, self.reports.awaited, self.reports.digests(), reduced.digest)
        self.in_flight = None
        self.noise = self.noise.updated(reduced.noise_norm2, reduced.noise_trace)
        return weights

    def durable(self) -> dict[int, int]:
        """How many of each member's samples the round in flight, which has been reduced everywhere, makes durable.
        Only of those whose parts are counted."""
        if self.shared:
            report = self._complete()[1]
            return dict(zip(report.counted, report.durables, strict=True))
        return self.reports.durable()

    def weights(self) -> dict[int, int]:
        """The tokens of each member whose part is counted."""
        fire, report = self._complete()
        return dict(zip(report.counted if self.shared else fire.members, report.weights, strict=True))

    def abort(self) -> None:
        """Forget the round in flight, if there is one."""
        self.aborted += self.in_flight is not None
        self.in_flight = self.check = self.comparison = None

    def _complete(self) -> tuple[Fire, Reduced]:
        """The round in flight, and what was reported for all."""
        report = self.reports.for_all()
        if self.in_flight is None or not self.decided or report is None:
            raise RuntimeError("no round in flight that is decided")
        return self.in_flight, report
