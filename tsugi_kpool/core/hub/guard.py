"""What the hub does not take in, whoever sent it: a pure verdict over a decoded message.

A frame that decodes may still lie. What is refused here never reaches the hub's decisions, so it changes no number of
anybody's training; it is counted by kind and shown. A member that lies plausibly about its own work is not caught.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tsugi_kpool.core.likeness import possible as possible_about
from tsugi_kpool.core.messages import (
    AdapterOffer,
    Beat,
    Broken,
    Checked,
    CheckpointOffer,
    Compared,
    DataPart,
    DataRequest,
    Discarded,
    Evaluated,
    Failed,
    Fell,
    Figures,
    Fire,
    Hello,
    LeaseRequest,
    Message,
    Reduced,
    Saved,
    SlotRequest,
    StopFleet,
    StopRequest,
    StoreGet,
    StorePut,
    Unreached,
    Vitals,
)
from tsugi_kpool.core.replica import reach
from tsugi_kpool.core.rounds.statements import DIGEST_BYTES, KEY_BYTES, SIGNATURE_BYTES
from tsugi_kpool.core.rounds.told import TOLD_CHARS, told_of

from .checkpoint_orders import possible
from .evaluating import evaluation_given
from .joining import refusal
from .refusals import Kind
from .seats import SEAT_CHARS, Seats
from .state import HubState

LARGEST = 2**53
"""No count, size or sequence number of ours comes near it."""
LONGEST_S = 1e9
"""Thirty years: nobody has trained for longer."""
OLD_SEQ = 256
"""A link has never this many messages without an acknowledgement: what is further behind is a replay."""
AHEAD = 2
"""A beat is put together while its replica trains: the buffer may be this many steps ahead of the counter."""
MAX_KEY, MAX_VALUE_BYTES, MAX_KEYS = 200, 4096, 200
"""Of the rendezvous store: gloo's keys are short, its values take about 200 bytes, its keys are one for each pair."""
MAX_WORD = 255
"""Characters of a host's name, or of an activity."""
MAX_REASON = 2000
MAX_TICKET = 64
"""Characters of a launcher's random id: the hub writes it down."""
MAX_SUMS = 100
"""Measures of an evaluation."""
MAX_FIGURES = 100
"""Of a reduction that a loop asks for."""
STAGES = ("base", "trained")
MANY = 16
_WITHOUT_NUMBERS = frozenset({str, bool, bytes, type(None)})


@dataclass
class Guard:
    """Judges what members send. `replica_of` says which replica a connection has shown itself to be.

    `seats` checks who may be which replica; None where there are no keys, and nothing to check by.
    """

    state: HubState
    seats: Seats | None = None
    _highest: dict[str, int] = field(default_factory=dict)
    """Incarnation -> the highest seq that was heard of it."""

    def verdict(self, message: Message, replica_of: int | None) -> Kind | None:
        """Why this message is refused, or None.

        Args:
            message: Decoded, not checked any further.
            replica_of: The member that the same connection has spoken for before, if it has.
        """
        if type(message) is Beat:  # first: nine of ten messages are beats
            return self._beat(message, replica_of)
        if not (measured(message) if isinstance(message, Evaluated) else sound(message)):
            return Kind.RANGE
        if isinstance(message, Hello):
            return self._hello(message, replica_of)
        replica = getattr(message, "replica", None)
        if replica is None:
            return _outside(message)
        if isinstance(message, (StorePut, StoreGet)):
            if replica_of is None:  # a link that was cut off says this before the beat that shows whose it is
                return Kind.EARLY
            return self._rendezvous(message) if replica == replica_of else Kind.IDENTITY
        if not self._is_member(replica, getattr(message, "incarnation", None), replica_of):
            return self._stranger(getattr(message, "incarnation", None))
        return self._sequence(message) or self._claims(message)

    def _is_member(self, replica: int, incarnation: str | None, replica_of: int | None) -> bool:
        """Whether this process is the one that is this replica, and speaks over the connection that it has shown."""
        member = self.state.members.get(replica)
        if member is None or member.hello.incarnation != incarnation:
            return False
        return replica_of is None or replica_of == replica

    def _stranger(self, incarnation: str | None) -> Kind | None:
        """Of no member. One whose place another process has taken may be heard: the hub tells it that it has left."""
        return None if incarnation in self.state.fenced else Kind.IDENTITY

    def _hello(self, hello: Hello, replica_of: int | None) -> Kind | None:
        """One that may not join is told why; unless everybody waits for it, that is no reason to end the run."""
        if len(hello.host) > MAX_WORD or len(hello.incarnation) > MAX_WORD or len(hello.seat) > SEAT_CHARS:
            return Kind.RANGE
        if len(hello.key) not in (0, KEY_BYTES):
            return Kind.RANGE
        known = self.state.members.get(hello.replica)
        if hello.incarnation in self.state.fenced:
            return None
        if known is not None and known.hello.incarnation == hello.incarnation:
            return None if replica_of in (None, hello.replica) else Kind.IDENTITY
        if replica_of is not None or not (self.seats is None or self.seats.holds(hello)):
            return Kind.IDENTITY
        if refusal(self.state, hello) is None or self.state.waits_for_all:
            return None
        # Whoever has the seat's key is its holder; its launcher knows of the death of the process before first.
        return Kind.EARLY if self.seats is not None and known is not None and known.here else Kind.IDENTITY

    def _rendezvous(self, message: StorePut | StoreGet) -> Kind | None:
        """The store holds short addresses, a few for each replica and generation; nobody may put in more."""
        if len(message.key) > MAX_KEY:
            return Kind.RANGE
        if isinstance(message, StoreGet):
            return None
        if not reach.is_own(message.key, message.replica):
            return Kind.IDENTITY
        full = len(self.state.store) >= MAX_KEYS * self.state.plan.replicas * max(1, self.state.generation)
        too_many = full and message.key not in self.state.store
        return Kind.RANGE if too_many or len(message.value) > MAX_VALUE_BYTES else None

    def _sequence(self, message: Message) -> Kind | None:
        seq = getattr(message, "seq", None)
        if seq is None:
            return None
        incarnation = message.incarnation  # type: ignore[attr-defined]
        highest = self._highest.get(incarnation, 0)
        if seq + OLD_SEQ < highest:
            return Kind.OLD
        if seq > highest + LARGEST // 2:
            return Kind.RANGE
        self._highest[incarnation] = max(highest, seq)
        return None

    def _claims(self, message: Message) -> Kind | None:
        """Whether what a member says of itself can be, given what the hub knows."""
        if isinstance(message, Reduced):
            return self._reduced(message)
        if isinstance(message, Checked):
            return self._checked(message)
        if isinstance(message, Compared):
            return self._compared(message)
        if self.state.members[message.replica].lost is not None:  # type: ignore[attr-defined]
            return None  # its books are closed, so nothing fits them: the hub tells it that it has left
        if isinstance(message, LeaseRequest) and not self.state.resumed:
            newest = self.state.leases.newest_ticket(message.replica)
            return Kind.RANGE if message.ticket > newest + 1 else None
        if isinstance(message, Broken):
            return (
                Kind.RANGE if len(message.reason) > MAX_REASON or message.generation > self.state.generation else None
            )
        if isinstance(message, Unreached):
            return Kind.RANGE if max(len(message.address), len(message.reason)) > MAX_WORD else None
        if isinstance(message, Figures):
            return _figures(message, self.state.figures.done)
        if isinstance(message, (Discarded, Failed, StopFleet)):
            return Kind.RANGE if len(message.reason) > MAX_REASON else None
        if isinstance(message, Evaluated):
            known = message.stage in STAGES or evaluation_given(self.state, message.stage, message.replica)
            return None if known else Kind.RANGE
        if isinstance(message, Saved):
            return None if possible(self.state, message) else Kind.RANGE
        if isinstance(message, Vitals) and min(message.rtt_s or 0.0, message.rtt_usual_s or 0.0) < 0:
            return Kind.RANGE
        return None

    def _beat(self, beat: Beat, replica_of: int | None) -> Kind | None:
        state = self.state
        if len(beat.pooled) != state.plan.kpool.n or len(beat.activity) > MAX_WORD or not _sound_beat(beat):
            return Kind.RANGE
        if not self._is_member(beat.replica, beat.incarnation, replica_of):
            return self._stranger(beat.incarnation)
        handed_out = state.leases.issued if state.plan.samples else LARGEST
        if max(beat.pooled) > beat.steps + AHEAD or beat.samples > handed_out:
            return Kind.RANGE
        if not state.resumed and (beat.version > state.rounds.version or beat.generation > state.generation):
            return Kind.RANGE
        before = state.members[beat.replica].beat
        return Kind.OLD if before is not None and _went_back(before, beat) else None

    def _checked(self, checked: Checked) -> Kind | None:
        """Who checks names each member at most once, and no stranger."""
        most = self.state.plan.replicas + self.state.plan.spare
        known = len(set(checked.wrong)) == len(checked.wrong) and all(each < most for each in checked.wrong)
        return None if known else Kind.RANGE

    def _compared(self, compared: Compared) -> Kind | None:
        """It says something of each member of the round, and of nobody else."""
        comparison = self.state.rounds.comparison
        if comparison is None or compared.round != comparison.order.round:
            return None  # late
        count = len(comparison.members)
        sizes = (len(compared.digests), len(compared.signatures))
        return None if sizes == (DIGEST_BYTES * count, SIGNATURE_BYTES * count) else Kind.RANGE

    def _reduced(self, reduced: Reduced) -> Kind | None:
        fire = self.state.rounds.in_flight
        if fire is None or reduced.round != fire.round:
            return Kind.RANGE if reduced.round > self.state.rounds.number and not self.state.resumed else None
        if not self._whose(reduced, fire):
            return Kind.RANGE
        plan = self.state.plan
        if not plan.samples or not plan.sample_tokens:
            return None
        if reduced.durable > self.state.leases.held(reduced.replica):
            return Kind.RANGE
        # All but one of a thousand members have none: the rest walks all of them. What an exchange has said of others
        # is voted on, and not its reporter's fault (`quarantine.overclaimed`).
        if not reduced.weights or self.state.rounds.shared:
            return None
        committed = sum(member.committed_tokens for member in [*self.state.members.values(), *self.state.past])
        possible = plan.kpool.n * self.state.leases.issued * plan.sample_tokens
        return Kind.RANGE if committed + sum(reduced.weights) > possible else None

    def _whose(self, reduced: Reduced, fire: Fire) -> bool:
        """Whether it says as much of each member of its round as it must, and of nobody else."""
        if not self.state.rounds.shared:
            lists = reduced.counted or reduced.durables or reduced.told
            return len(reduced.weights) in (0, len(fire.members)) and not lists
        counted = reduced.counted
        if not len(reduced.weights) == len(counted) == len(reduced.durables) <= len(fire.members):
            return False
        if not counted:  # all but a few of a thousand members: the rest walks all of them
            return len(reduced.told) == TOLD_CHARS
        if len(set(counted)) < len(counted) or not set(fire.members).issuperset(counted):
            return False
        return reduced.told == told_of(counted, reduced.weights, reduced.durables)


def _figures(message: Figures, done: int) -> Kind | None:
    """Nobody can be further than one reduction, and what everybody gets is small."""
    short = len(message.sums) <= MAX_FIGURES and all(len(name) <= MAX_WORD for name in message.sums)
    largest = max(map(abs, message.sums.values()), default=0.0)
    return None if short and 0 < message.number <= done + 1 and largest <= LARGEST else Kind.RANGE


def _outside(message: Message) -> Kind | None:
    """Of those who are no replica: what they name is short."""
    if (
        isinstance(message, SlotRequest | StopRequest | Fell | DataRequest | AdapterOffer | CheckpointOffer)
        and not 0 < len(message.ticket) <= MAX_TICKET
    ):
        return Kind.RANGE
    if isinstance(message, DataRequest | DataPart) and len(message.file) > MAX_KEY:
        return Kind.RANGE
    if isinstance(message, CheckpointOffer) and len(message.name) > MAX_KEY:
        return Kind.RANGE
    if isinstance(message, SlotRequest) and not possible_about(message.about):
        return Kind.RANGE
    return Kind.RANGE if isinstance(message, Fell | StopRequest) and len(message.reason) > MAX_REASON else None


def measured(message: Evaluated) -> bool:
    """As `sound`, for the one message whose numbers may be none: a model that has come apart measures no number, and
    a user's metric may be any. A loss that is no number is never the best; a finite one is no larger than a count can
    be.
    """
    sums = message.sums
    return (
        sound((message.seq, message.replica))
        and len(sums) <= MAX_SUMS
        and all(len(name) <= MAX_WORD for name in sums)
        and all(abs(value) <= LARGEST for value in sums.values() if math.isfinite(value))
    )


def sound(value: Any) -> bool:
    """Whether all numbers in a message are finite, and all whole ones within [0, LARGEST]. Asked of every frame."""
    kind = type(value)
    if kind is int:
        return bool(0 <= value <= LARGEST)
    if kind is float:
        return math.isfinite(value)
    if kind in _WITHOUT_NUMBERS:
        return True
    if kind is tuple:
        return _all_sound(value)
    return _all_sound(tuple(value.values()) if kind is dict else msgspec.structs.astuple(value))


def _all_sound(values: tuple[Any, ...]) -> bool:
    """As `sound`, without a call for each of a frame's fields or a thousand counts in a row."""
    if len(values) > MANY and set(map(type, values)) == {int}:
        return bool(min(values) >= 0 and max(values) <= LARGEST)
    for value in values:
        kind = type(value)
        if kind is int:
            if not 0 <= value <= LARGEST:
                return False
        elif kind is float:
            if not math.isfinite(value):
                return False
        elif kind not in _WITHOUT_NUMBERS and not sound(value):
            return False
    return True


def _sound_beat(beat: Beat) -> bool:
    """As `sound`, with a tenth of its calls, and no duration below 0 or beyond what anybody has trained."""
    counts = (
        beat.replica, beat.generation, beat.version, beat.reduced, beat.steps, beat.samples, beat.tokens, beat.joined,
        beat.sent_bytes, beat.received_bytes, beat.worked, beat.ticket, *beat.pooled,
    )  # fmt: skip
    seconds = (beat.busy_s, beat.trained_s, beat.step_s, beat.wait_s, beat.sync_wait_s, beat.stepped_s)
    return (
        min(counts) >= 0
        and max(counts) <= LARGEST
        and min(seconds) >= 0.0
        and max(seconds) <= LONGEST_S
        and math.isfinite(sum(seconds) + beat.loss + beat.lr)  # what is no number makes a sum none
    )


def _went_back(old: Beat, new: Beat) -> bool:
    return new.steps < old.steps or new.samples < old.samples or new.tokens < old.tokens or new.version < old.version
