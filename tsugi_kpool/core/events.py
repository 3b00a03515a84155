"""The events of a run, a class for each: the lines of `events.jsonl`, and what consoles and docs name.

Most follow from a record of the hub's journal (`core.hub.telling` derives them), some from no record, and some are
the launcher's own. `Event.name` is the line's `event`, the fields are its other keys; its recorder adds `time`.
A field with a default stands in the line only where it says something. Names and fields are read by other programs:
they stay, new fields have defaults.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec


class Name(StrEnum):
    """The names of all events, for those who read lines: `Name.FIRED == line["event"]`."""

    JOINED = "joined"
    SEAT_FREED = "seat_freed"
    TURNED_AWAY = "turned_away"
    GENERATION = "generation"
    FIRED = "fired"
    COMMITTED = "committed"
    ABORTED = "aborted"
    LEFT = "left"
    DISCARDED = "discarded"
    SKIPPED = "skipped"
    PARTING = "parting"
    RESTARTED = "restarted"
    UNREACHED = "unreached"
    QUORUM_LOST = "quorum_lost"
    QUORUM_BACK = "quorum_back"
    EVALUATED = "evaluated"
    EVALUATING = "evaluating"
    STOPPED_EARLY = "stopped_early"
    SIZED = "sized"
    SLOW = "slow"
    RECOVERED = "recovered"
    LINK_RECOVERED = "link_recovered"
    DRAINED = "drained"
    FINISHED = "finished"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    DESERTED = "deserted"
    FAILED = "failed"
    RESUMED = "resumed"
    JOURNAL_BEHIND = "journal_behind"
    JOURNAL_WHOLE = "journal_whole"
    RECORDS_LOST = "records_lost"
    SINK_FAILED = "sink_failed"
    CHECKPOINT = "checkpoint"
    CHECKPOINT_FAILED = "checkpoint_failed"
    REFUSED = "refused"
    NOTE = "note"


class Event(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="event", tag="event"):
    """Base of all events."""

    @property
    def name(self) -> str:
        """The line's `event`."""
        return str(self.__struct_config__.tag)

    @property
    def data(self) -> dict[str, Any]:
        """The line's other keys, as who reads the line finds them."""
        built: dict[str, Any] = msgspec.to_builtins(self)
        del built["event"]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in built.items()}


class Joined(Event, frozen=True, tag=Name.JOINED.value):
    """A replica was let in."""

    replica: int
    host: str
    pid: int


class SeatFreed(Event, frozen=True, tag=Name.SEAT_FREED.value):
    """Somebody else may become this replica."""

    replica: int
    reason: str


class TurnedAway(Event, frozen=True, tag=Name.TURNED_AWAY.value):
    """A machine wanted to join and was not let in, because it has something else than the run."""

    host: str
    reason: str
    replica: int | None = None
    """Whose place it had, if it had one."""


class Generation(Event, frozen=True, tag=Name.GENERATION.value):
    """A group of these replicas was ordered."""

    generation: int
    members: tuple[int, ...]


class Fired(Event, frozen=True, tag=Name.FIRED.value):
    """A round was ordered."""

    round: int
    adapters: tuple[int, ...]
    reason: str
    pooled: int
    """Steps that all members had buffered for them, the least."""
    delayed_s: float | None = None
    """Seconds that the order waited for steps about to end."""
    delayed_for: tuple[int, ...] = ()


class Committed(Event, frozen=True, tag=Name.COMMITTED.value):
    """A round counts."""

    round: int
    version: int
    seconds: float
    """Of the slowest member's collective."""
    payload_bytes: int
    weights: tuple[int, ...]
    """Supervised tokens, by member."""
    digest: str
    k: int | None = None
    """Adapters of the rounds to come, where `kpool.k=auto` has changed that."""


class Aborted(Event, frozen=True, tag=Name.ABORTED.value):
    """A round was given up; nothing of it was applied."""

    round: int
    reason: str


class Left(Event, frozen=True, tag=Name.LEFT.value):
    """A replica has left in the middle of the run."""

    replica: int
    host: str
    reason: str
    again: int
    """Samples that others train on again. Over an exchange fewer, if its part of the round in flight counts."""
    durable: int
    """Samples whose work stays; then more."""
    incarnation: str
    quarantined: bool = False


class Discarded(Event, frozen=True, tag=Name.DISCARDED.value):
    """A replica has thrown away what it had buffered, because it was unusable."""

    replica: int
    reason: str
    tokens: int
    strikes: int
    """How often in a row."""


class Skipped(Event, frozen=True, tag=Name.SKIPPED.value):
    """A replica has left out micro-batches whose loss is no finite number, and kept all else."""

    replica: int
    reason: str
    """Which samples: `file:line`, and their numbers in the data order."""
    batches: int
    tokens: int
    """Supervised ones in them."""


class Parting(Event, frozen=True, tag=Name.PARTING.value):
    """Who brought this replica wants it back."""

    replica: int


class Unreached(Event, frozen=True, tag=Name.UNREACHED.value):
    """While a group forms: one replica does not reach another one."""

    replica: int
    other: int
    address: str
    """Where the other one listens."""
    reason: str


class Restarted(Event, frozen=True, tag=Name.RESTARTED.value):
    """The launcher starts a replica again."""

    replica: int
    times: int


class QuorumLost(Event, frozen=True, tag=Name.QUORUM_LOST.value):
    """Too few replicas are left: training pauses."""

    live: int
    min_replicas: int
    timeout_s: float


class QuorumBack(Event, frozen=True, tag=Name.QUORUM_BACK.value):
    """Enough are there again."""

    live: int


class Evaluated(Event, frozen=True, tag=Name.EVALUATED.value):
    """A replica has evaluated its share; or, while training, a version on the whole eval split."""

    replica: int
    stage: str
    sums: dict[str, float]
    """What its share sums to; of all shares the losses are made."""
    version: int = 0
    """While training: rounds that were committed when the anchors were copied."""
    loss: float | None = None
    """While training: loss per supervised token; None where it is no finite number."""


class Evaluating(Event, frozen=True, tag=Name.EVALUATING.value):
    """A replica was given a version to evaluate while it trains."""

    replica: int
    version: int


class StoppedEarly(Event, frozen=True, tag=Name.STOPPED_EARLY.value):
    """The run ends, because its evaluations have found no lower loss for long."""

    version: int
    """The best one."""
    loss: float | None
    """Of the best version, per supervised token."""
    evaluations: int
    """Without a lower loss since then."""


class Sized(Event, frozen=True, tag=Name.SIZED.value):
    """The steps of a slow replica were fitted to the rounds' period."""

    replica: int
    micro_batch: int
    was: int
    period_s: float


class Slow(Event, frozen=True, tag=Name.SLOW.value):
    """A replica or its link is slow; the fields are those of `core.messages.Slowness`."""

    replica: int
    factor: float
    since_s: float | None
    before_s: float
    after_s: float
    part: str
    cause: str
    evidence: tuple[str, ...]


class Recovered(Event, frozen=True, tag=Name.RECOVERED.value):
    """A replica is slow no more."""

    replica: int
    seconds: float
    """How long it was."""
    step_s: float
    """What a step takes now."""


class LinkRecovered(Event, frozen=True, tag=Name.LINK_RECOVERED.value):
    """A link is slow no more."""

    replica: int


class Drained(Event, frozen=True, tag=Name.DRAINED.value):
    """Every replica has ended its last step: one round ships what is left."""


class Finished(Event, frozen=True, tag=Name.FINISHED.value):
    """Every contribution is committed."""

    version: int


class Stopped(Event, frozen=True, tag=Name.STOPPED.value):
    """The same of a run that was stopped before its data were used up."""

    version: int


class Interrupted(Event, frozen=True, tag=Name.INTERRUPTED.value):
    """The run's owner wants it to stop."""


class Deserted(Event, frozen=True, tag=Name.DESERTED.value):
    """The last replica has been taken back, and the anchors with it."""

    version: int


class Failed(Event, frozen=True, tag=Name.FAILED.value):
    """The run cannot go on."""

    replica: int | None
    reason: str


class Resumed(Event, frozen=True, tag=Name.RESUMED.value):
    """A hub goes on from another one's journal."""

    version: int
    round: int


class JournalBehind(Event, frozen=True, tag=Name.JOURNAL_BEHIND.value):
    """The journal cannot be written."""

    reason: str


class JournalWhole(Event, frozen=True, tag=Name.JOURNAL_WHOLE.value):
    """It can again, and lacks nothing."""


class RecordsLost(Event, frozen=True, tag=Name.RECORDS_LOST.value):
    """The run's files lack lines. Told once, and only to those who look: the file lacks it, too."""

    reason: str


class SinkFailed(Event, frozen=True, tag=Name.SINK_FAILED.value):
    """Somebody who keeps or shows what a run tells, such as a tracker, has failed and is told nothing more."""

    sink: str
    reason: str


class CheckpointMade(Event, frozen=True, tag=Name.CHECKPOINT.value):
    """A checkpoint stands."""

    checkpoint: str
    version: int
    samples: int
    samples_total: int
    payload_bytes: int
    seconds: float


class CheckpointFailed(Event, frozen=True, tag=Name.CHECKPOINT_FAILED.value):
    """One could not be written."""

    checkpoint: str
    reason: str


class Refused(Event, frozen=True, tag=Name.REFUSED.value):
    """The sideband has not taken something in."""

    kind: str
    times: int
    """Since the last event of this kind."""
    in_all: int


class Note(Event, frozen=True, tag=Name.NOTE.value):
    """Words for the user."""

    text: str


KINDS: dict[str, type[Event]] = {str(kind.__struct_config__.tag): kind for kind in Event.__subclasses__()}
"""Name -> class."""
