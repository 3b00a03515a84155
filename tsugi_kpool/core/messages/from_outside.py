"""Messages between the hub and others than replicas (`tsugi join`, observers), in both directions."""

from __future__ import annotations

import msgspec

from tsugi_kpool.core.renamed import key_of

from .frame import Message


class SlotRequest(Message, frozen=True):
    """`tsugi join` asks for a place in the run. Repeated until its replica has joined: that holds the place."""

    ticket: str
    """A random id of the asker: a repeated request gets the same place."""
    about: dict[str, str] = msgspec.field(default_factory=dict)
    """The asker's name and versions (core.likeness)."""


class Slot(Message, frozen=True):
    """The hub's answer: the number of the replica to be, and its run. May be lost; the request is repeated."""

    ticket: str
    replica: int
    run: str
    config: str
    """The resolved configuration as YAML."""
    config_hash: str
    seat: str = ""
    """Proof that the replica's Hello must show; empty where the hub asks for no keys."""
    exchange: str = ""
    """Certificate (PEM) of the exchange, one port above the hub; empty where replicas send to each other."""
    about: dict[str, str] = msgspec.field(default_factory=dict)
    """The hub's name and versions."""
    data: str = ""
    """Hash of the hub's prepared data; empty where it has none."""
    listing: str = ""
    """SHA-256 (hexadecimal) of the listing of these data's files, which DataRequest asks for; empty: they are not
    given."""
    resumed: str = ""
    """SHA-256 (hexadecimal) of the manifest of the checkpoint that the run goes on from, which DataRequest asks for.
    Empty: there is none, or a round has been committed."""


class DataRequest(Message, frozen=True):
    """`tsugi join` asks for a part of a file of the prepared data, or of the checkpoint that the run goes on from;
    the hub for one of an adapter or a checkpoint that it was offered. May be lost; asked again after 3 s."""

    ticket: str
    """The asker's own; only who has a place is answered."""
    file: str
    """Its name in the listing; empty: the listing itself. Of a checkpoint that was offered the offer's `name` stands
    before it, with a slash between; of the one that the run goes on from `resumed/`."""
    start: int
    """First byte of the part, which has 49152 bytes, or as many as there are."""


class AdapterOffer(Message, frozen=True):
    """`tsugi join` offers the adapter of its replica, which has ended, to a hub whose machine has none.

    The hub asks for its files by DataRequest, and gets them as DataPart. Repeated until AdapterSettled.
    """

    ticket: str
    listing: bytes
    """JSON, file names to `size` and `sha256`."""


class AdapterSettled(Message, frozen=True):
    """The hub's answer to who offers an adapter: it has one, or takes none; nothing of it is wanted any more. May be
    lost; the offer is repeated."""

    ticket: str
    """That of the offer."""


class CheckpointOffer(Message, frozen=True):
    """`tsugi join` offers the files of a checkpoint that its replica has written and reported with Saved.

    The hub asks for them by DataRequest, and gets them as DataPart. Repeated until CheckpointSettled.
    """

    ticket: str
    name: str
    """`at` and the version, or `final`."""


class CheckpointSettled(Message, frozen=True):
    """The hub's answer to who offers a checkpoint: it has it, or wants it no more. May be lost; the offer is
    repeated."""

    ticket: str
    """That of the offer."""
    name: str
    """That of the offer."""


class DataPart(Message, frozen=True):
    """A part of a file that was asked for. May be lost; it is asked for again."""

    file: str
    """That of the question."""
    start: int
    """That of the question."""
    data: bytes
    """Empty behind the file's end."""


class StopRequest(Message, frozen=True):
    """Ctrl-C at `tsugi join`: its place is given back. Repeated until its replica has left."""

    ticket: str
    reason: str = ""
    """Why, where it is not the user's wish: what this machine lacks."""


class StopRun(Message, frozen=True):
    """The run's owner ends the run in good order (`tsugi stop`). Answered by Ack(0); repeated until then."""


class Fell(Message, frozen=True):
    """`tsugi join` reports that a worker of its replica was killed. May be lost: the silence shows it a few seconds
    later."""

    ticket: str
    pid: int
    """Process id in the replica's Hello; a newer process in its place is not meant."""
    reason: str


class StatusRequest(Message, frozen=True):
    """An observer asks how the fleet is. May be lost; the observer asks again."""


class Slowness(msgspec.Struct, frozen=True, rename=key_of):
    """A replica that is slow, since when, and why (core.slow.diagnose)."""

    factor: float
    """Seconds of a step now over those before; for a replica that was never faster, over the fleet's median."""
    since_s: float | None
    """Seconds since it turned slow; None when it was slow from its first step on."""
    before_s: float
    """Seconds of a usual step before that, waits included; the fleet's median when `since_s` is None."""
    after_s: float
    """The same now."""
    part: str
    """The part that takes longer: step, data wait, sync wait or outside; or round: its link is slow, and nobody waits
    for it."""
    cause: str
    """compute, memory, data, link, rounds or outside."""
    evidence: tuple[str, ...]
    """Evidence for the cause, in words, strongest first."""


class ReplicaStatus(msgspec.Struct, frozen=True, rename=key_of):
    """One row of the fleet's table."""

    replica: int
    host: str
    state: str
    steps: int
    samples: int
    tokens: int
    tokens_per_s: float
    """Its own rate: supervised tokens per second over the newest window."""
    step_s: float
    lag_s: float
    """Seconds since the furthest replica was where this one is now."""
    lag_steps: int
    fill: float
    """Buffered steps of the next round's adapters, as a share of those that fire a round (0 to 1)."""
    share: float
    """Its share of all committed weight (0 to 1)."""
    sent_bytes: int
    silent_s: float
    """Seconds since its last beat."""
    received_bytes: int = 0
    slowness: Slowness | None = None
    """Set while the replica is slow."""
    jitters: bool = False
    """More than a tenth of its steps take over twice its median."""
    drift: float | None = None
    """Its rate over the fleet's median rate, minus 1: 0 is the same pace, -0.75 four times slower."""
    drift_error: float | None = None
    """Half the width of drift's 95 % interval."""
    rtt_s: float | None = None
    """Round trip to the hub: the least of the newest exchanges."""
    clock_offset_s: float | None = None
    """The hub's monotonic clock minus the replica's."""
    up_bytes: int = 0
    """Bytes that its link has sent over the sideband. `sent_bytes` counts those of the rounds."""
    down_bytes: int = 0


class FleetStatus(Message, frozen=True):
    """The hub's answer to StatusRequest, and what the console draws."""

    run: str
    stage: str
    expected: int
    """Replicas that the run has when it is complete."""
    generation: int
    version: int
    elapsed_s: float
    """Seconds since the run began."""
    samples_done: int
    samples_total: int
    eta_s: float | None
    """Seconds until the data is used up at the present rate; None while unknown."""
    tokens: int
    tokens_per_s: float
    goodput: float | None
    """Tokens trained as a share of what the replicas' own rates allow; None before training."""
    loss: float | None
    """Mean of the replicas' newest smoothed training losses, weighted by tokens."""
    firing: tuple[int, ...]
    """Adapters of the round in flight; empty when none is."""
    rounds: dict[str, int]
    """Rounds fired, by reason."""
    aborted: int
    pool_text: str
    """The pool in words, such as "K=2 of N=8, local, int8"."""
    trigger_text: str
    replicas: tuple[ReplicaStatus, ...]
    """In the order of their ids; of a large fleet only as many as a frame holds (`joined` counts all)."""
    joined: int = 0
    health: str = "healthy"
    """core.hub.health.Health of the whole fleet."""
    health_reasons: tuple[str, ...] = ()
    """Reasons why it is not healthy, worst first."""
    min_replicas: int = 1
    """With fewer live replicas the run has no quorum."""
    pooled: int = 0
    """Steps that all replicas have buffered for the adapters of the next round; the least of these adapters counts.
    """
    target: float = 0.0
    """Pooled steps at which the next round is expected."""
    variance: float | None = None
    """trSigma / (n |G|^2) of the pool at present (core.rounds.noise); None while it is unknown."""
    eps: float | None = None
    """Threshold of `variance` for a round; None where `kpool.eps` is no number."""
    goodput_now: float | None = None
    """Goodput over the newest rate window only."""
    lockstep_tokens: float | None = None
    """Tokens that lock-step training would have trained so far with the replicas' own step times (core.slow.tax)."""
    tax_recovered: float | None = None
    """Share of the straggler tax that this run did not pay: 0 is lock-step, 1 is everybody's own pace."""
    refused: dict[str, int] = msgspec.field(default_factory=dict)
    """Messages that the hub has refused, by kind (core.hub.refusals)."""
    replayed: int = 0
    """Samples trained again because the replica that had them left; `samples_done` counts them once."""
    paused_s: float | None = None
    """Seconds since training paused for lack of a quorum; None while it goes on."""
    reduced: int = 0
    """Members that have reduced the round in flight; it commits when all have."""
    insecure: bool = False
    """The hub asks for no keys."""
    interrupted: bool = False
    """The run ends, or has ended, before its data are used up."""
    refused_of: tuple[str, ...] = ()
    """The members whose own messages are in `refused`, in words; the most frequent first."""
    held_out: int = 0
    """Samples that are evaluated before and after training; 0 when that is not known."""
    about: dict[str, str] = msgspec.field(default_factory=dict)
    """The hub's name and versions. This and what follows is told over the sideband only."""
    exchange: bool = False
    """The run has an exchange, one port above the hub."""
    wants_adapter: bool = False
    """No replica is on the hub's machine: it takes the adapter of one that has ended."""
    no_place: str = ""
    """Why a machine that asked for a place now would get none; empty: one is free."""
