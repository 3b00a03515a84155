"""The hub's input at its start (the plan), and its output: messages, records, and what its owner is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from .evaluation import Every
from .events import Event
from .messages import Beat, Message, Saved
from .messages.from_replica import LOSS_SMOOTHING
from .records import AnyRecord
from .settings import KPool


class FleetStage(StrEnum):
    """The stages of a run, in order; INTERRUPTED and FAILED may follow any."""

    GATHERING = "gathering"
    TRAINING = "training"
    DRAINING = "draining"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    """Ended before everything was committed, because the user did not want to wait for that."""
    FAILED = "failed"


@dataclass(frozen=True)
class HubPlan:
    """What the hub must know of a run before it starts."""

    run: str
    config_hash: str
    replicas: int
    kpool: KPool
    samples: int
    """Positions of the data order to lease; 0 when every replica reads data of its own."""
    micro_batch: int
    """Samples in one step of a replica, in however many parts it computes them."""
    lease_samples: int
    start_timeout_s: float
    silent_timeout_s: float | None = None
    """Timeout of heartbeats: a member that others wait for and that is silent for this long is removed. None: no
    timeout."""
    min_replicas: int = 1
    """Quorum: with fewer live replicas training pauses."""
    quorum_timeout_s: float = 600.0
    """A run that has had no quorum for this long fails."""
    joinable: int = 0
    """How many replicas other machines bring: those with the highest numbers."""
    spare: int = 0
    """How many more replicas may join the running job. Their numbers begin at `replicas`."""
    config: str = ""
    """The resolved configuration as text, for replicas from other machines; the hub does not read it."""
    sample_tokens: int = 0
    """The most supervised tokens that one sample has; 0 when that is not known."""
    supervised: bool = True
    """A launcher ends the processes of a failed run. Without one (false) the hub tells the members."""
    checkpoints: bool = False
    """Whether the hub's owner makes checkpoints from the replicas' files."""
    done: tuple[tuple[int, int], ...] = ()
    """Ranges [start, stop) of the data order that an earlier run has made durable; they are not leased again."""
    insecure: bool = False
    """Its sideband asks for no keys: whoever looks at it must see that."""
    lease_ahead_s: float = 0.0
    """Seconds of work that a replica is leased at a time, where that is more than `lease_samples`."""

    bad_batches: int | None = None
    """Micro-batches without a finite loss that a run may leave out; with one more it has failed. None: any number."""
    evaluate: Every | None = None
    """How often a replica evaluates a copy of the anchors while the run trains; None: never."""
    held_out: int = 0
    """Samples that are evaluated before and after training; 0 when that is not known."""
    patience: int | None = None
    """After so many such evaluations in a row without a lower loss the run ends; None: it does not."""
    exchange: str = ""
    """Certificate of the run's exchange, for replicas from other machines; empty where replicas form groups."""
    keep_best: bool = False
    """Whether each version that is evaluated becomes a checkpoint."""
    about: Mapping[str, str] = field(default_factory=dict)
    """Of the hub's machine, its name and versions (core.likeness); empty: they are not compared."""
    data: str = ""
    """Hash of the run's prepared data; empty where there are none."""
    listing: str = ""
    """Address of these data's listing (core.parcels); empty: the hub does not give them."""
    resumed: str = ""
    """SHA-256 of what says which checkpoint the run goes on from; empty: from none, or it is not given."""
    sealed: bool = False
    """Whether members seal what they send each other: where it leaves this machine."""

    @property
    def elsewhere(self) -> range:
        """The replicas that other machines bring."""
        return range(self.replicas - self.joinable, self.replicas + self.spare)


ASKER = -1
"""Takes the place of the replica's number where a message goes to whoever has just asked."""


class Send(msgspec.Struct, frozen=True, gc=False):
    """To be sent to a replica."""

    replica: int
    message: Message


class StepTaken(msgspec.Struct, frozen=True, gc=False):
    """A step has ended; recorded in metrics.jsonl. It holds the beat itself, because nine of ten effects are of this
    kind."""

    beat: Beat
    before: Beat | None
    """The replica's beat before it; None: there is none of this process."""

    @property
    def loss(self) -> float | None:
        """Loss of the newest step alone, out of two means: a beat has no room for both. None: a beat between them was
        lost, or the step's loss was no number, which leaves the mean as it was."""
        beat, before = self.beat, self.before
        if beat.steps == 1:
            return beat.loss
        if before is None or before.steps != beat.steps - 1 or before.loss == beat.loss:
            return None
        return (beat.loss - LOSS_SMOOTHING * before.loss) / (1 - LOSS_SMOOTHING)

    @property
    def data(self) -> dict[str, Any]:
        """One line of metrics.jsonl."""
        beat = self.beat
        return {
            "replica": beat.replica,
            "steps": beat.steps,
            "samples": beat.samples,
            "tokens": beat.tokens,
            "loss": self.loss,
            "loss_mean": beat.loss,
            "lr": beat.lr,
            "step_s": beat.step_s,
            "version": beat.version,
        }


class Keep(msgspec.Struct, frozen=True, gc=False):
    """A record to be written to the journal before anything that follows it among the effects is sent."""

    record: AnyRecord


class CheckpointOrdered(msgspec.Struct, frozen=True, gc=False):
    """For the hub's owner: the files of this version will come, and this is what the hub knows of it."""

    version: int
    final: bool
    """The last one: nothing is buffered anywhere."""
    done: tuple[tuple[int, int], ...] = ()
    """Positions whose work has been committed for every adapter."""
    tokens: int = 0
    trained: int = 0
    """Samples that members have trained on in this run."""
    loss: float | None = None
    members: tuple[int, ...] = ()
    """Who writes its part."""
    writer: int = 0
    """The one of them that writes what is the fleet's own."""
    digests: tuple[tuple[tuple[int, ...], str], ...] = ()
    """Adapters, and the SHA-256 of their anchors that their members have agreed on. Over an exchange, in local mode:
    elsewhere a digest covers more than a checkpoint has."""


class CheckpointPart(msgspec.Struct, frozen=True, gc=False):
    """For the hub's owner: a replica has written a file of a checkpoint, or could not."""

    saved: Saved


Told = Event | StepTaken | CheckpointOrdered | CheckpointPart
"""What the hub tells its owner."""

Effect = Send | Keep | Told
