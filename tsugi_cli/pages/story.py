"""A run's records, one after the other, become curves, rounds, slow spans and the fleet's timeline."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

from tsugi_cli.console.events import ROUND_EVENTS, plain_event
from tsugi_cli.console.slow import slowness_text
from tsugi_cli.record.measures import besides
from tsugi_cli.record.records import number, numbers
from tsugi_cli.record.status_log import restore
from tsugi_kpool.core.events import Name
from tsugi_kpool.core.messages import FleetStatus

from .facts import Curve, Replica, Round, RunFacts, SlowSpan

EVENTS = 400
"""So many of the newest events are told; events.jsonl has all."""
PIECES = 400
"""A replica's time is told in at most twice as many pieces."""


class _Track:
    """What is known of one replica while records are read."""

    def __init__(self, replica: int) -> None:
        self.facts = Replica(replica)
        self.loss, self.lag, self.sent = Curve(), Curve(), Curve()
        self.busy: list[tuple[float, float, float]] = []
        self._at_s: float | None = None

    def step(self, record: Mapping[str, Any], at_s: float) -> None:
        """Take a line of metrics.jsonl: the steps since the one before took `step_s` each."""
        steps, step_s = int(number(record.get("steps")) or 0), number(record.get("step_s")) or 0.0
        if (loss := number(record.get("loss"))) is not None:
            self.loss.add(at_s, loss)
        new = max(1, steps - self.facts.steps)
        begun_s = at_s - step_s if self._at_s is None else self._at_s
        if at_s > begun_s and step_s >= 0:
            self.busy.append((begun_s, at_s, min(new * step_s, at_s - begun_s)))
        if len(self.busy) >= 2 * PIECES:
            self.busy = [_joined(self.busy[i : i + 2]) for i in range(0, len(self.busy), 2)]
        self._at_s = max(at_s, self._at_s or at_s)
        self.facts.steps = steps
        self.facts.samples = int(number(record.get("samples")) or 0)
        self.facts.tokens = int(number(record.get("tokens")) or 0)

    def end(self) -> Replica:
        """Return its facts."""
        own = self.facts
        own.loss, own.lag_s, own.sent = self.loss.points, self.lag.points, self.sent.points
        own.busy = self.busy
        if own.busy:
            own.computed_s = sum(busy for _, _, busy in own.busy)
            own.waited_s = max(0.0, own.busy[-1][1] - own.busy[0][0] - own.computed_s)
            own.tokens_per_s = own.tokens / max(1e-9, own.busy[-1][1] - own.busy[0][0])
        return own


def _joined(pieces: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    return pieces[0][0], pieces[-1][1], sum(busy for _, _, busy in pieces)


class Story:
    """Takes records in the order of their times, and completes a run's facts at their end."""

    def __init__(self, facts: RunFacts) -> None:
        self._facts = facts
        self._origin_s: float | None = None
        self._tracks: dict[int, _Track] = {}
        self._loss, self._tokens = Curve(), Curve()
        self._rounds: dict[int, Round] = {}
        self._sums: dict[str, tuple[Counter[str], float]] = {}
        self._generation = 0
        self._words: deque[str] = deque(maxlen=EVENTS)
        self._told = 0

    def take(self, kind: str, record: dict[str, Any], at_s: float) -> None:
        """Take a record of this kind (status, events or metrics)."""
        self._origin_s = at_s if self._origin_s is None else self._origin_s
        now_s = at_s - self._origin_s
        self._facts.seconds = max(self._facts.seconds, now_s)
        if kind == "status":
            if (status := restore(record)) is not None:
                self._status(status, now_s)
        elif kind == "events":
            self._event(record, now_s)
        elif (track := self._track(record)) is not None:
            track.step(record, now_s)

    def end(self) -> None:
        """Complete the facts."""
        facts, aborted = self._facts, sum(each.aborted for each in self._rounds.values())
        facts.replicas = [self._tracks[replica].end() for replica in sorted(self._tracks)]
        facts.loss, facts.tokens = self._loss.points, self._tokens.points
        facts.rounds = [self._rounds[number] for number in sorted(self._rounds)]
        facts.events, facts.events_before = list(self._words), self._told - len(self._words)
        facts.totals["rounds"], facts.totals["aborted"] = len(facts.rounds) - aborted, aborted
        for stage, (sums, at_s) in self._sums.items():
            if sums["loss_tokens"] > 0 and (mean := number(sums["loss_sum"] / sums["loss_tokens"])) is not None:
                facts.evaluated.append((stage, at_s, mean))
                for name, value in besides(sums).items():
                    facts.measured.setdefault(name, []).append((at_s, value))
        self._shipped()

    def _shipped(self) -> None:
        for each in self._rounds.values():
            for replica in self._facts.generations.get(each.generation, ()):
                if replica in self._tracks and not each.aborted:
                    self._tracks[replica].facts.shipped_s += each.collective_s or 0.0

    def _track(self, record: Mapping[str, Any]) -> _Track | None:
        replica = record.get("replica")
        if isinstance(replica, bool) or not isinstance(replica, int):
            return None
        return self._tracks.setdefault(replica, _Track(replica))

    def _status(self, status: FleetStatus, now_s: float) -> None:
        facts, totals = self._facts, self._facts.totals
        facts.stage = status.stage
        totals |= {
            "wall_s": number(status.elapsed_s),
            "samples": status.samples_done,
            "samples_total": status.samples_total,
        }
        totals |= {"tokens": status.tokens, "goodput": number(status.goodput), "version": status.version}
        totals |= {"tokens_per_s": number(status.tokens_per_s), "replayed": status.replayed}
        if (loss := number(status.loss)) is not None:
            self._loss.add(now_s, loss)
        self._tokens.add(now_s, status.tokens)
        for row in status.replicas:
            track = self._tracks.setdefault(row.replica, _Track(row.replica))
            track.facts.host = row.host or track.facts.host
            track.facts.share = number(row.share)
            track.facts.sent_bytes = row.sent_bytes
            track.sent.add(now_s, row.sent_bytes)
            if (lag_s := number(row.lag_s)) is not None:
                track.lag.add(now_s, lag_s)

    def _event(self, record: dict[str, Any], now_s: float) -> None:
        name = record.get("event")
        if not isinstance(name, str):
            return
        if name not in ROUND_EVENTS:
            self._words.append(plain_event(record))
            self._told += 1
        if name in (Name.FIRED, Name.COMMITTED, Name.ABORTED):
            self._round(name, record, now_s)
        elif name == Name.GENERATION:
            self._generation = int(number(record.get("generation")) or 0)
            members = record.get("members")
            known = [each for each in members if isinstance(each, int)] if isinstance(members, list) else []
            self._facts.generations[self._generation] = known
        elif name == Name.EVALUATED:
            self._evaluated(record, now_s)
        elif (track := self._track(record)) is not None:
            self._of_replica(name, track, record, now_s)

    def _of_replica(self, name: str, track: _Track, record: Mapping[str, Any], now_s: float) -> None:
        own = track.facts
        if name == Name.JOINED:
            own.host = str(record.get("host") or "")
            own.joined_s, own.left_s = now_s if own.joined_s is None else own.joined_s, None
        elif name == Name.LEFT:
            own.left_s = now_s
            self._close(own.replica, now_s)
        elif name == Name.SLOW:
            again = self._close(own.replica, now_s)
            begun_s = now_s if again else max(0.0, now_s - (number(record.get("since_s")) or 0.0))
            self._facts.slow.append(SlowSpan(own.replica, begun_s, None, slowness_text(record, None)))
        elif name in (Name.RECOVERED, Name.LINK_RECOVERED):
            self._close(own.replica, now_s)

    def _close(self, replica: int, now_s: float) -> bool:
        """End a replica's slow span; returns whether there was one."""
        spans = [span for span in self._facts.slow if span.replica == replica and span.until_s is None]
        for span in spans:
            span.until_s = now_s
        return bool(spans)

    def _round(self, name: str, record: Mapping[str, Any], now_s: float) -> None:
        which = int(number(record.get("round")) or 0)
        if name == Name.FIRED:
            adapters = record.get("adapters")
            many = len(adapters) if isinstance(adapters, list) else 0
            delayed_s = number(record.get("delayed_s")) or 0.0
            reason = str(record.get("reason") or "")
            self._rounds[which] = Round(which, now_s, reason, many, self._generation, delayed_s=delayed_s)
            return
        own = self._rounds.setdefault(which, Round(which, now_s, generation=self._generation))
        own.whole_s, own.aborted = max(0.0, now_s - own.at_s), name == Name.ABORTED
        own.collective_s = number(record.get("seconds"))
        own.payload_bytes = int(number(record.get("payload_bytes")) or 0)

    def _evaluated(self, record: Mapping[str, Any], now_s: float) -> None:
        stage = str(record.get("stage") or "?")
        sums, _ = self._sums.get(stage, (Counter(), 0.0))
        sums.update(numbers(record.get("sums")))
        self._sums[stage] = (sums, now_s)
