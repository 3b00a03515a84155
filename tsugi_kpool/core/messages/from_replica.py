"""Messages from a replica to the hub."""

from __future__ import annotations

import msgspec

from .facts import MachineFacts
from .frame import Message


class Hello(Message, frozen=True, omit_defaults=True):
    """A replica asks to join. Resent until acknowledged."""

    seq: int
    replica: int
    incarnation: str
    """A random id, new for every process. Frames of an older process are ignored."""
    host: str
    pid: int
    config_hash: str
    layout: str
    """Hash of the pool's shapes and of the wire format. All members' must be equal before any collective."""
    seat: str = ""
    """Proof that it was given this replica's slot (core.hub.seats). The hub checks it and stores it nowhere."""
    key: bytes = b""
    """Public key (Ed25519) of what this process signs as an owner of two-stage rounds; empty: it signs nothing."""


# A beat is most of what a replica sends: one letter for each name keeps ten a second far below 2 KB/s.
_BEAT_NAMES = {
    "replica": "r", "incarnation": "i", "generation": "e", "version": "v", "reduced": "l", "activity": "a",
    "steps": "m", "samples": "s", "tokens": "t", "busy_s": "b", "trained_s": "T", "step_s": "d",
    "loss": "L", "lr": "R", "pooled": "p", "sent_bytes": "B", "drained": "D", "worked": "w", "wait_s": "W",
    "sync_wait_s": "h", "stepped_s": "S", "received_bytes": "G", "joined": "j", "ticket": "k",
}  # fmt: skip


LOSS_SMOOTHING = 0.9
"""Weight of the value before in `Beat.loss`; the newest step has the rest."""


class Beat(Message, frozen=True, rename=_BEAT_NAMES):
    """A replica's progress, raw facts only. Sent at every step and every beat_s. May be lost."""

    replica: int
    incarnation: str
    generation: int
    """Generation whose group this replica has formed (0: none yet)."""
    version: int
    """Rounds that this replica has committed."""
    reduced: int
    """Newest round whose collective has ended here."""
    activity: str
    """Its activity in one word: loading, evaluating, training, draining, exporting."""
    steps: int
    samples: int
    tokens: int
    """Supervised tokens trained on."""
    busy_s: float
    """Seconds spent in steps since training began."""
    trained_s: float
    """Seconds since training began."""
    step_s: float
    """Duration of the newest step."""
    loss: float
    """Exponential mean of the steps' training losses, per supervised token (`LOSS_SMOOTHING`)."""
    lr: float
    pooled: tuple[int, ...]
    """Steps buffered for each adapter."""
    sent_bytes: int
    drained: bool
    """There is no more data and the last step has ended."""
    worked: int = 0
    """Tokens computed on, prompts and padding included. Step times are compared at equal work."""
    wait_s: float = 0.0
    """Seconds that the training thread has waited for data between steps."""
    sync_wait_s: float = 0.0
    """Seconds that it has waited for the buffer's lock, has spent applying rounds, or has waited for a round without
    overlap."""
    stepped_s: float = 0.0
    """`trained_s` at the end of the newest step."""
    received_bytes: int = 0
    """Bytes of the others' contributions that came over this replica's link."""
    joined: int = 0
    """Newest round whose Fire has been obeyed here: the hub need not repeat that order."""
    ticket: int = 0
    """Ticket of the newest lease that was begun here: `drained` says nothing about later ones."""


class Vitals(Message, frozen=True, omit_defaults=True):
    """How a replica's machine and link are, raw facts only. Sent once a second; answered by Stamps. May be lost."""

    replica: int
    incarnation: str
    sent_s: float
    """The replica's monotonic clock when this was sent."""
    machine: MachineFacts
    offset_s: float | None = None
    """Estimate of the hub's monotonic clock minus the replica's (core.replica.clock)."""
    rtt_s: float | None = None
    """The shortest round trip of the newest exchanges, without the hub's own time."""
    up_bytes: int = 0
    """Bytes that this link has sent since it began, in frames."""
    down_bytes: int = 0
    """Bytes that it has received."""
    rtt_usual_s: float | None = None
    """The median round trip of the same exchanges: it grows when the link is full of other bytes."""


class AdapterFacts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Facts about one adapter of a round. The hub's routing uses them."""

    steps: int
    """Steps of all members in it."""
    change_norm: float
    """Norm of the mean: of changes (local mode) or gradients (gradient mode)."""


class Reduced(Message, frozen=True, omit_defaults=True):
    """A member's collective for a round has ended; nothing is applied yet. Resent until its Commit, or an Ack."""

    seq: int
    replica: int
    incarnation: str
    generation: int
    round: int
    digest: str
    """SHA-256 of the selected adapters' new anchors."""
    seconds: float
    payload_bytes: int
    weights: tuple[int, ...]
    """Supervised tokens that each member shipped, in the order of the members (summed over adapters).

    Only the round's first member fills this and `adapters`: with a thousand members each would repeat a thousand
    numbers.
    """
    noise_norm2: float
    """Estimate of |G|^2 from the pooled sums (core.rounds.noise); 0 when it was not measured."""
    noise_trace: float
    """Estimate of trSigma from the pooled sums; 0 when it was not measured."""
    adapters: tuple[AdapterFacts, ...] = ()
    """Facts about each adapter that it shipped, in the order of the Fire."""
    gather_s: float = 0.0
    """Seconds in the collective itself: the wait for the last member to join it, and the transfer."""
    durable: int = 0
    """How many of this member's samples, counted from the first, are durable once the round is committed."""
    weight: int = 0
    """Supervised tokens that this member shipped itself, summed over adapters."""
    unusable: tuple[int, ...] = ()
    """Members whose parts are not finite or have impossible weights. Such a round is never applied."""
    blamer: int | None = None
    """The owner that says so, in a two-stage round: it alone has seen those parts. None: all have seen them."""
    counted: tuple[int, ...] = ()
    """Over an exchange: the members whose parts are in the result; `weights` and `durables` are theirs, in this
    order. Only a few members say so (`core.rounds.closing.REPORTERS`)."""
    durables: tuple[int, ...] = ()
    """Over an exchange: how many of each one's samples are durable once the round is committed. Who gave a part and
    died cannot say it itself."""
    told: str = ""
    """Over an exchange: the digest of these three lists as the result has them, also from those who leave them out
    (`core.rounds.told`). It is voted on with `digest`."""
    receipt: str = ""
    """Over an exchange: shows that it has said `told` (core.hub.tickets). From those who report the lists."""


class Checked(Message, frozen=True):
    """A member has done its part of a Check. Resent until acknowledged."""

    seq: int
    replica: int
    incarnation: str
    generation: int
    round: int
    owner: int
    """The member that is checked."""
    checkers: int
    """How many checked: a second check of the same owner is by all."""
    wrong: tuple[int, ...] = ()
    """Members that this one has found to be wrong: the owner, or who has sent other bytes than it had promised."""


class Compared(Message, frozen=True):
    """What a member has got of each other one in a round, in the order of the members. Resent until acknowledged."""

    seq: int
    replica: int
    incarnation: str
    generation: int
    round: int
    digests: bytes
    """Of each member 32 bytes: SHA-256 of what it tells all alike (`core.rounds.statements`)."""
    signatures: bytes
    """Of each member 64 bytes: the signature that came with it, whether it is one or not."""


class Discarded(Message, frozen=True):
    """A replica has thrown away its buffer, which was unusable, and has begun again from the anchors.

    Or it has left out micro-batches whose loss is no number, and kept all else. Resent until acknowledged.
    """

    seq: int
    replica: int
    incarnation: str
    reason: str
    tokens: int
    """Supervised tokens that were thrown away, summed over adapters."""
    skipped: int = 0
    """Micro-batches that were left out; 0: all that was buffered has been thrown away."""


class Broken(Message, frozen=True):
    """A collective has failed here, or a group did not form. The hub decides how to go on.

    Resent until acknowledged.
    """

    seq: int
    replica: int
    incarnation: str
    generation: int
    round: int
    """0: the group did not form."""
    reason: str


class Unreached(Message, frozen=True):
    """While a group forms: this member does not reach another one. The group may form all the same.

    Resent until acknowledged.
    """

    seq: int
    replica: int
    incarnation: str
    generation: int
    other: int
    """The member that was dialled."""
    address: str
    """Where, host:port."""
    reason: str


class Failed(Message, frozen=True):
    """A replica has failed by an error of its own. Resent until acknowledged."""

    seq: int
    replica: int
    incarnation: str
    reason: str


class LeaseRequest(Message, frozen=True):
    """A replica wants data. Resent until its Lease arrives."""

    replica: int
    incarnation: str
    ticket: int
    """Number of the request, counted by this incarnation: a repeated request gets the same lease again."""


class Evaluated(Message, frozen=True):
    """Sums over this replica's share of an evaluation. Resent until acknowledged."""

    seq: int
    replica: int
    incarnation: str
    stage: str
    """base or trained, each a share of the eval split; or v and a version, of which one replica measures all."""
    sums: dict[str, float]
    examples: tuple[tuple[str, str, str], ...]
    """(request, expected, generated) of a few test samples."""


class Saved(Message, frozen=True):
    """A file of a checkpoint has been written, or could not be. Resent until acknowledged."""

    seq: int
    replica: int
    incarnation: str
    version: int
    """Version of the checkpoint."""
    final: bool
    """It is the checkpoint at the end of the run."""
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


class Figures(Message, frozen=True):
    """A replica's part of the `number`-th reduction that a loop asks for. Resent until its Totals arrive."""

    seq: int
    replica: int
    incarnation: str
    number: int
    """Counted by every replica, from 1: the same call is the same number everywhere."""
    sums: dict[str, float]
    """By name, what this replica adds."""


class StopFleet(Message, frozen=True):
    """A loop wants all replicas to stop: nobody is to start another step. Resent until acknowledged."""

    seq: int
    replica: int
    incarnation: str
    reason: str


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
