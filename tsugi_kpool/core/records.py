"""Records of the hub's durable state: a class for each thing that it must not forget.

The hub writes a record into its journal before it sends what the record justifies: what it acknowledged or ordered
outlives it.
"""

from __future__ import annotations

import msgspec

from .diagnosis import Parts
from .messages import Evaluated, Fire, Hello, Lease, Reduced
from .messages.facts import MachineFacts
from .renamed import key_of, tag_of


class Record(msgspec.Struct, frozen=True, tag=tag_of, rename=key_of, forbid_unknown_fields=True):
    """Base of all records. Replayed in order, they give the hub's durable state."""


class Began(Record, frozen=True):
    """The run that this journal is of: always the first record."""

    run: str
    config_hash: str
    replicas: int
    format: int = 1
    """How its lines are written: see `core.journal.FORMAT`."""


class Joined(Record, frozen=True):
    """A replica was let in."""

    hello: Hello


class SlotGiven(Record, frozen=True):
    """Somebody from another machine is to be this replica."""

    ticket: str
    replica: int


class SeatFreed(Record, frozen=True):
    """The slot of this replica is free again: somebody else may take it.

    Before the run has begun the process that had joined is forgotten with it.
    """

    replica: int
    reason: str = ""


class TurnedSlow(Record, frozen=True):
    """A replica has turned slow. From this record the next hub knows since when, and how fast it was before."""

    replica: int
    incarnation: str
    trained_s: float | None
    """The replica's own `trained_s` when it turned slow: the only clock that both hubs share. None: it was slow from
    its first step on."""
    before: Parts
    before_level: float
    after: Parts
    part: str
    cause: str
    evidence: tuple[str, ...]
    usual: MachineFacts
    """Its machine before."""
    rtt_before_s: float | None = None
    transfer_before_s: float | None = None
    """Seconds of a usual round's collective before."""


class Recovered(Record, frozen=True):
    """A replica is slow no more."""

    replica: int
    seconds: float = 0.0
    """How long it was."""
    step_s: float = 0.0
    """What a step takes it now."""


class GenerationOpened(Record, frozen=True):
    """The group of these members was ordered."""

    generation: int
    members: tuple[int, ...]
    newcomers: tuple[int, ...] = ()
    donor: int = 0


class KeyStored(Record, frozen=True):
    """A key of the generation's rendezvous store was set."""

    key: str
    value: bytes


class Leased(Record, frozen=True):
    """A range of data was granted."""

    replica: int
    lease: Lease


class RoundFired(Record, frozen=True):
    """A round was ordered. One with the reason `final` ships all that is left."""

    fire: Fire


class RoundReduced(Record, frozen=True):
    """A member's collective has ended. Values that are equal on all members are in the first one's record only."""

    reduced: Reduced


class RoundCommitted(Record, frozen=True):
    """The round in flight was committed."""

    round: int
    version: int
    digest: str
    pooled: tuple[int, ...]
    """Steps that the members had buffered for each adapter. Routing chose the next round's adapters by these."""
    step_s: float = 0.0
    """Duration of a step by the members' newest beats. `kpool.k=auto` chose by it."""


class EvaluationGiven(Record, frozen=True):
    """A replica was told to evaluate the anchors of this version, while it trains."""

    replica: int
    version: int
    at: float
    """How far the run had come, in the unit of `evaluate.every`."""


class Evaluation(Record, frozen=True):
    """A replica's sums of an evaluation."""

    evaluated: Evaluated


PARTED = "its user stopped it"
"""Reason of a replica that left with nothing uncommitted."""


class Left(Record, frozen=True):
    """A replica has left: at its end, or in the middle of the run."""

    replica: int
    reason: str = ""
    """Empty: it had finished."""
    trained: int = 0
    """Samples that it had trained on, by its beats; without a beat all that it had been leased."""
    quarantined: bool = False


class Struck(Record, frozen=True):
    """A replica has thrown away its buffer, which was unusable."""

    replica: int
    reason: str = ""
    tokens: int = 0


class Skipped(Record, frozen=True):
    """A replica has left out micro-batches whose loss is no finite number."""

    replica: int
    incarnation: str
    seq: int
    """Of the message: the same one may come twice."""
    reason: str
    batches: int
    tokens: int


class Interrupted(Record, frozen=True, omit_defaults=True):
    """The run ends early: its owner asked for that, or no replica is left."""

    over: bool = False
    """Nobody is left: this is the end."""
    deserted: bool = False
    """... because the last replica was taken back."""
    early: bool = False
    """Nobody asked: the evaluations found no lower loss any more (`train.stop_early.patience`)."""


class Finished(Record, frozen=True):
    """Every contribution is committed."""


class RunFailed(Record, frozen=True):
    """The run could not go on."""

    reason: str
    replica: int | None
    quorum: bool = False
    """Too few replicas were left."""


AnyRecord = (
    Began | Joined | GenerationOpened | KeyStored | Leased | RoundFired | RoundReduced | RoundCommitted
    | Evaluation | Left | Interrupted | Finished | RunFailed | SlotGiven | SeatFreed | TurnedSlow | Recovered
    | Struck | Skipped | EvaluationGiven
)  # fmt: skip
