"""What the hub hears from those who are no replica (`tsugi join`, observers), and what it answers."""

from __future__ import annotations

import msgspec

from tsugi_kpool.core.renamed import key_of

from .frame import Message


class SlotRequest(Message, frozen=True):
    """`tsugi join` asks for a replica to be. Repeated until that replica has joined: it holds the place."""

    ticket: str
    """A random id of the asker: a repeated request gets the same place."""


class Slot(Message, frozen=True):
    """The hub's answer: be this replica of that run. May be lost; the request is repeated."""

    ticket: str
    replica: int
    run: str
    config: str
    """The resolved configuration as YAML."""
    config_hash: str
    seat: str = ""
    """What that replica's Hello has to show; empty where the hub asks for no keys."""


class StopRequest(Message, frozen=True):
    """A person has pressed Ctrl-C at `tsugi join`: its place is given back. Repeated until its replica has left."""

    ticket: str


class StopRun(Message, frozen=True):
    """The run's owner wants it to end in good order (`tsugi stop`). Answered by Ack(0); repeated until then."""


class Fell(Message, frozen=True):
    """`tsugi join` says that a worker of its replica was killed. May be lost: silence tells, a few seconds later."""

    ticket: str
    pid: int
    """The one that the replica's Hello named: a process in its place is not meant."""
    reason: str


class StatusRequest(Message, frozen=True):
    """An observer asks how the fleet is. May be lost; the observer asks again."""


class Slowness(msgspec.Struct, frozen=True, rename=key_of):
    """A replica that is slow, since when, and why (core.slow.diagnose)."""

    factor: float
    """How many times as long it takes as before or, when it was never faster, as the fleet's median."""
    since_s: float | None
    """Seconds ago that it turned slow; None when it has been slow from its first steps on."""
    before_s: float
    """Seconds of a usual step, waits included, before that; the fleet's median when `since_s` is None."""
    after_s: float
    """The same now."""
    part: str
    """What takes longer: step, data wait, sync wait or outside; round: its link is slow, and nobody waits for it."""
    cause: str
    """compute, memory, data, link, rounds or outside."""
    evidence: tuple[str, ...]
    """Facts that speak for the cause, in words, the weightiest first."""


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
    """Seconds since the furthest replica stood where this one stands now."""
    lag_steps: int
    fill: float
    """Buffered steps of the adapters that are due, as a share of what fires a round (0 to 1)."""
    share: float
    """Its part of all committed weight (0 to 1)."""
    sent_bytes: int
    silent_s: float
    """Seconds since its last beat."""
    received_bytes: int = 0
    slowness: Slowness | None = None
    """Set while the replica is slow."""
    jitters: bool = False
    """More than a tenth of its steps take over twice its median."""
    drift: float | None = None
    """Its rate against the fleet's median, minus 1: 0 is the same pace, -0.75 four times slower."""
    drift_error: float | None = None
    """Half the width of drift's 95 % interval."""
    rtt_s: float | None = None
    """Round trip to the hub: the least of the newest exchanges."""
    clock_offset_s: float | None = None
    """The hub's monotonic clock minus the replica's."""
    up_bytes: int = 0
    """Bytes that its link has sent over the sideband; `sent_bytes` are those of the rounds."""
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
    """What speaks against its health, worst first."""
    min_replicas: int = 1
    """With fewer live replicas the run has no quorum."""
    pooled: int = 0
    """Steps that all replicas have buffered for the adapters that are due (the least of them)."""
    target: float = 0.0
    """Pooled steps at which the next round is expected."""
    variance: float | None = None
    """trSigma / (n |G|^2) of the pool as it stands (core.rounds.noise); None while it is unknown."""
    eps: float | None = None
    """What `variance` must fall to; None where no number was set."""
    goodput_now: float | None = None
    """As `goodput`, but over the newest rate window only."""
    lockstep_tokens: float | None = None
    """What lock-step training would have done so far with the replicas' own step times (core.slow.tax)."""
    tax_recovered: float | None = None
    """The part of the straggler tax that this run did not pay: 0 is lock-step, 1 is everybody's own pace."""
    refused: dict[str, int] = msgspec.field(default_factory=dict)
    """What the hub has not taken in, by kind (core.hub.refusals)."""
    replayed: int = 0
    """Samples trained again after a replica had left with them; `samples_done` counts them once."""
    paused_s: float | None = None
    """Seconds since training paused for want of replicas; None while it goes on."""
    reduced: int = 0
    """Members on which the round in flight has been reduced; it commits when it has on all."""
    insecure: bool = False
    """The hub asks for no keys."""
    interrupted: bool = False
    """It ends, or has ended, before its data are used up."""
    refused_of: tuple[str, ...] = ()
    """Whose was `refused`, in words, where a member's own messages were among it; the most frequent first."""
