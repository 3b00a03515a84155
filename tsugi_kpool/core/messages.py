"""Everything that crosses the sideband, as small frozen structs; one frame holds one message.

A frame is one byte of schema version and a MessagePack map with a type tag. Nothing is ever unpickled.
Each message says who sends it, who reads it and whether it may be lost. What may not be lost is either
resent by its sender until it is acknowledged (``seq``), or is an order, which the hub repeats to a member
whose beats show that it has not acted on it; handling a message twice changes nothing.
"""

from __future__ import annotations

import msgspec

from .facts import MachineFacts

SCHEMA_VERSION = 1
MAX_FRAME_BYTES = 65_536
"""No legitimate frame is larger; both ends refuse what is."""


# gc=False, here and where structs are kept by the thousand: nothing in them can lead back to them. Python's collector
# walks all that it tracks: at 1,000 links it stopped a hub for up to 0.7 s, six times in 12 s.
class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True, gc=False):
    """Base of all frames."""


# --- replica -> hub ---------------------------------------------------------------------------------------


class Hello(Message, frozen=True):
    """A replica asks to join. Resent until acknowledged."""

    seq: int
    replica: int
    incarnation: str
    """A new random id for every process: an older one's frames are ignored."""
    host: str
    pid: int
    config_hash: str
    layout: str
    """Hash of the pool's shapes and of the wire format: what must be equal before a collective."""


# A beat is most of what a replica sends: one letter for each name keeps ten a second far below 2 KB/s.
_BEAT_NAMES = {
    "replica": "r", "incarnation": "i", "epoch": "e", "version": "v", "landed": "l", "activity": "a",
    "micro_steps": "m", "samples": "s", "tokens": "t", "busy_s": "b", "trained_s": "T", "micro_step_s": "d",
    "loss": "L", "lr": "R", "pooled": "p", "sent_bytes": "B", "drained": "D", "worked": "w", "wait_s": "W",
    "hold_s": "h", "stepped_s": "S", "received_bytes": "G", "joined": "j", "ticket": "k",
}  # fmt: skip


class Beat(Message, frozen=True, rename=_BEAT_NAMES):
    """A replica's progress, raw facts only. Sent at every micro-step and every beat_s. May be lost."""

    replica: int
    incarnation: str
    epoch: int
    """Epoch whose group this replica has formed (0: none yet)."""
    version: int
    """Rounds that this replica has committed."""
    landed: int
    """Newest round whose collective has landed here."""
    activity: str
    """What it does, in one word: loading, evaluating, training, draining, exporting."""
    micro_steps: int
    samples: int
    tokens: int
    """Supervised tokens trained on."""
    busy_s: float
    """Seconds spent in micro-steps since training began."""
    trained_s: float
    """Seconds since training began."""
    micro_step_s: float
    """Duration of the newest micro-step."""
    loss: float
    lr: float
    pooled: tuple[int, ...]
    """Micro-steps buffered for each adapter."""
    sent_bytes: int
    drained: bool
    """There is no more data and the last micro-step has ended."""
    worked: int = 0
    """Tokens computed on, prompts and padding included: the work that micro-step times are compared by."""
    wait_s: float = 0.0
    """Seconds that the training thread has waited for data between micro-steps."""
    hold_s: float = 0.0
    """Seconds that it has waited for the buffer's lock, landed rounds, or waited for a round without overlap."""
    stepped_s: float = 0.0
    """`trained_s` as it was when the newest micro-step ended."""
    received_bytes: int = 0
    """Contributions of the others that came over this replica's link."""
    joined: int = 0
    """Newest round whose Fire has been obeyed here: that order need not be repeated."""
    ticket: int = 0
    """Of the newest lease that was begun here: `drained` says nothing of later ones."""


class Vitals(Message, frozen=True, omit_defaults=True):
    """How a replica's machine and link are, raw facts only. Sent once a second; answered by Stamps. May be lost."""

    replica: int
    incarnation: str
    sent_s: float
    """The replica's monotonic clock when this was sent."""
    machine: MachineFacts
    offset_s: float | None = None
    """Estimate of the hub's monotonic clock minus the replica's (core.clock)."""
    rtt_s: float | None = None
    """The least round trip of the newest exchanges, without the hub's own time."""
    up_bytes: int = 0
    """What this link has sent since it began, in frames."""
    down_bytes: int = 0
    """What it has received."""
    rtt_usual_s: float | None = None
    """The median round trip of the same exchanges: what a link that is full of other bytes makes of it."""


class AdapterFacts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a round has shown of one of its adapters: for routing, which is the hub's alone."""

    micro_steps: int
    """Pooled, of all members."""
    change_norm: float
    """Norm of the pooled mean: of changes (local mode) or gradients (gradient mode)."""
    norm2: float
    """Estimate of |G|^2 from the differences between members (core.noise); 0 when it was not measured."""
    trace: float
    """Estimate of trSigma from the same; 0 when it was not measured."""


class Landed(Message, frozen=True):
    """A member's collective for a round has landed; nothing is applied yet. Resent until acknowledged."""

    seq: int
    replica: int
    incarnation: str
    epoch: int
    round: int
    digest: str
    """SHA-256 of the selected adapters' new anchors."""
    seconds: float
    payload_bytes: int
    weights: tuple[int, ...]
    """Supervised tokens that each member shipped, in the order of the members (summed over adapters).

    The round's first member says it for all, the others leave this and `adapters` empty: a thousand members would
    repeat a thousand numbers each.
    """
    noise_norm2: float
    """Estimate of |G|^2 from the pooled sums (core.noise); 0 when it was not measured."""
    noise_trace: float
    """Estimate of trSigma from the pooled sums; 0 when it was not measured."""
    adapters: tuple[AdapterFacts, ...] = ()
    """What the round says about each adapter that it shipped, in the order of the Fire."""
    gather_s: float = 0.0
    """Seconds in the collective itself: the wait for the last member to join it, and the transfer."""
    durable: int = 0
    """Samples of this member, the first ones that it trained on, that are durable once the round is committed."""


class Broken(Message, frozen=True):
    """A collective has failed here, or a group did not form; what goes on is for the hub to say.

    Resent until acknowledged.
    """

    seq: int
    replica: int
    incarnation: str
    epoch: int
    round: int
    """0: the group did not form."""
    reason: str


class Failed(Message, frozen=True):
    """A replica cannot go on, by an error of its own. Resent until acknowledged."""

    seq: int
    replica: int
    incarnation: str
    reason: str


class LeaseRequest(Message, frozen=True):
    """A replica wants data. Resent until its Lease arrives."""

    replica: int
    incarnation: str
    ticket: int
    """Counts the requests of this incarnation: a repeated one gets the same lease again."""


class Evaluated(Message, frozen=True):
    """Sums over this replica's share of an evaluation. Resent until acknowledged."""

    seq: int
    replica: int
    incarnation: str
    stage: str
    """base or trained."""
    sums: dict[str, float]
    examples: tuple[tuple[str, str, str], ...]
    """(request, expected, generated) of a few test samples."""


class Saved(Message, frozen=True):
    """A file of a checkpoint has been written, or could not be. Resent until acknowledged."""

    seq: int
    replica: int
    incarnation: str
    version: int
    """Of the checkpoint."""
    final: bool
    """It is the one that ends the run."""
    file: str
    bytes: int = 0
    sha256: str = ""
    error: str = ""
    """Why it could not be written; empty when it was."""


class Bye(Message, frozen=True):
    """A replica has finished all its work. Resent until acknowledged."""

    seq: int
    replica: int
    incarnation: str


class StorePut(Message, frozen=True):
    """One key of the rendezvous store. Resent until acknowledged."""

    seq: int
    replica: int
    key: str
    value: bytes


class StoreGet(Message, frozen=True):
    """Asks for a key of the rendezvous store. Repeated by the asker until the value is there."""

    replica: int
    key: str


# --- hub -> replica ---------------------------------------------------------------------------------------


BEAT_SEQ = 0
"""The seq in the answer to a beat, which has none: it says that the hub is alive."""


class Ack(Message, frozen=True):
    """The hub has handled the message with this seq. If lost, the sender repeats and is acknowledged again."""

    seq: int


class Stamps(Message, frozen=True):
    """The hub's answer to Vitals, for the link's clock. May be lost."""

    echo_s: float
    """The Vitals' own `sent_s`."""
    received_s: float
    """The hub's monotonic clock when it took them in."""
    sent_s: float
    """And when it answered."""


class Refused(Message, frozen=True):
    """The hub does not let this replica in, or the run it was let into has failed. The replica ends with this reason.

    If lost, the answer to the replica's next Hello or beat says it again.
    """

    reason: str
    fenced: bool = False
    """The run goes on without this process: it has been taken for dead. Another one may take its place."""


class Epoch(Message, frozen=True):
    """An order: these members form the group of this epoch. Repeated until their beats show the epoch."""

    epoch: int
    members: tuple[int, ...]
    version: int
    """Rounds committed before it. Who has landed a round and missed what became of it learns that from here."""
    active: tuple[int, ...] = ()
    """Adapters that train from now on; empty: all."""
    newcomers: tuple[int, ...] = ()
    """Members that begin from the donor's anchors; all others stand on the same ones, and keep what they have."""
    donor: int = 0


class Fire(Message, frozen=True):
    """An order: aggregate these adapters. Repeated until the round has landed everywhere."""

    epoch: int
    round: int
    adapters: tuple[int, ...]
    members: tuple[int, ...]
    reason: str
    version: int = 0
    """Rounds committed before this one: whether the round before it was is seen from that."""
    active: tuple[int, ...] = ()
    """Adapters that train from now on; empty: all."""


class Commit(Message, frozen=True):
    """An order: the round landed on every member with one digest; apply it. Repeated as needed."""

    epoch: int
    round: int
    active: tuple[int, ...] = ()
    """Adapters that train from now on; empty: all."""
    save: bool = False
    """These anchors become a checkpoint: write down what is yours to write."""


class Abort(Message, frozen=True):
    """An order: forget this round's result; what was shipped stays in the buffers. Repeated as needed."""

    epoch: int
    round: int
    reason: str


class Lease(Message, frozen=True):
    """Positions [start, stop) of the data order to train on; empty means that there is no more."""

    ticket: int
    start: int
    stop: int
    micro_batch: int = 0
    """Samples in one micro-step of this range; 0: as many as the run's configuration says."""


class StoreValue(Message, frozen=True):
    """The value of a key, or None when it is not there yet."""

    key: str
    value: bytes | None


class Drain(Message, frozen=True):
    """An order: start no further micro-step. Repeated until the replica's beats say drained."""

    reason: str


class Refill(Message, frozen=True):
    """An order: there is data again, because somebody has left; ask for it. Repeated while beats say drained."""


class Finish(Message, frozen=True):
    """An order: every contribution is committed; this version is the result. Repeated as needed."""

    version: int
    evaluate: bool
    """False after an interrupt: keep the result, skip what is not needed."""
    first: int = 0
    """The lowest replica that is left: it exports the adapter."""


# --- joining from another machine ---------------------------------------------------------------------------


class PlaceRequest(Message, frozen=True):
    """`tsugi join` asks for a replica to be. Repeated until that replica has joined: it holds the place."""

    ticket: str
    """A random id of the asker: a repeated request gets the same place."""


class Place(Message, frozen=True):
    """The hub's answer: be this replica of that run. May be lost; the request is repeated."""

    ticket: str
    replica: int
    run: str
    config: str
    """The resolved configuration as YAML."""
    config_hash: str


class StopRequest(Message, frozen=True):
    """A person has pressed Ctrl-C at `tsugi join`: the fleet is to stop. Repeated until its status shows it."""

    ticket: str


# --- observers --------------------------------------------------------------------------------------------


class StatusRequest(Message, frozen=True):
    """An observer asks how the fleet is. May be lost; the observer asks again."""


class Slowness(msgspec.Struct, frozen=True):
    """A replica that is slow, since when, and why (core.diagnosis)."""

    factor: float
    """How many times as long it takes as before or, when it was never faster, as the fleet's median."""
    since_s: float | None
    """Seconds ago that it turned slow; None when it has been slow from its first micro-steps on."""
    before_s: float
    """Seconds of a usual micro-step, waits included, before that; the fleet's median when `since_s` is None."""
    after_s: float
    """The same now."""
    part: str
    """What takes longer: micro-step, data wait, hold or outside."""
    cause: str
    """compute, memory, data, link, rounds or outside."""
    evidence: tuple[str, ...]
    """Facts that speak for the cause, in words, the weightiest first."""


class ReplicaStatus(msgspec.Struct, frozen=True):
    """One row of the fleet's table."""

    replica: int
    host: str
    rank: int
    state: str
    micro_steps: int
    samples: int
    tokens: int
    tokens_per_s: float
    """Its own rate: supervised tokens per second over the newest window."""
    micro_step_s: float
    lag_s: float
    """Seconds since the furthest replica stood where this one stands now."""
    lag_micro: int
    fill: float
    """Buffered micro-steps of the adapters that are due, as a share of what fires a round (0 to 1)."""
    share: float
    """Its part of all committed weight (0 to 1)."""
    sent_bytes: int
    silent_s: float
    """Seconds since its last beat."""
    received_bytes: int = 0
    slowness: Slowness | None = None
    """Set while the replica is slow."""
    jitters: bool = False
    """More than a tenth of its micro-steps take over twice its median."""
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
    epoch: int
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
    """core.health.Health of the whole fleet."""
    health_reasons: tuple[str, ...] = ()
    """What speaks against its health, worst first."""
    min_replicas: int = 1
    """With fewer live replicas the run has no quorum."""
    pooled: int = 0
    """Micro-steps that all replicas have buffered for the adapters that are due (the least of them)."""
    target: float = 0.0
    """Pooled micro-steps at which the next round is expected."""
    variance: float | None = None
    """trSigma / (n |G|^2) of the pool as it stands (core.noise); None while it is unknown."""
    eps: float | None = None
    """What `variance` must fall to; None where no number was set."""
    goodput_now: float | None = None
    """As `goodput`, but over the newest rate window only."""
    lockstep_tokens: float | None = None
    """What lock-step training would have done so far with the replicas' own micro-step times (core.tax)."""
    tax_recovered: float | None = None
    """The part of the straggler tax that this run did not pay: 0 is lock-step, 1 is everybody's own pace."""
    refused: dict[str, int] = {}
    """What the hub has not taken in, by kind (core.refusals)."""
    replayed: int = 0
    """Samples trained again after a replica had left with them; `samples_done` counts them once."""
    paused_s: float | None = None
    """Seconds since training paused for want of replicas; None while it goes on."""
    landed: int = 0
    """Members on which the round in flight has landed; it commits when it has on all."""


Frame = (
    Hello | Beat | Vitals | Stamps | Landed | Broken | Failed | LeaseRequest | Evaluated | Saved | Bye | StorePut
    | StoreGet | Ack | Refused | Epoch | Fire | Commit | Abort | Lease | StoreValue | Drain | Refill | Finish
    | StatusRequest | FleetStatus | PlaceRequest | Place | StopRequest
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


class BadFrame(ValueError):
    """A frame that is too large, of another schema version, or not one of our messages."""


def encode(message: Message) -> bytes:
    """Turn a message into a frame.

    Raises:
        BadFrame: the message does not fit into MAX_FRAME_BYTES.
    """
    frame = bytes([SCHEMA_VERSION]) + _encoder.encode(message)
    if len(frame) > MAX_FRAME_BYTES:
        raise BadFrame(f"{type(message).__name__} takes {len(frame)} bytes, at most {MAX_FRAME_BYTES}")
    return frame


def decode(frame: bytes) -> Frame:
    """Turn a frame into a message.

    Raises:
        BadFrame: whatever is wrong with it. Besides DecodeError, msgspec lets UnicodeDecodeError (a ValueError)
            and RecursionError out of hostile input.
    """
    if not 2 <= len(frame) <= MAX_FRAME_BYTES:
        raise BadFrame(f"frame of {len(frame)} bytes")
    if frame[0] != SCHEMA_VERSION:
        raise BadFrame(f"schema version {frame[0]}, expected {SCHEMA_VERSION}")
    try:
        return _decoder.decode(frame[1:])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadFrame(str(error)) from error
