"""What the hub does not take in, whoever sent it: a pure verdict over a decoded message.

A frame that decodes may still lie. What is refused here never reaches the hub's decisions, so it changes no number of
anybody's training; it is counted by kind and shown. Here is judged who speaks, and whether it is new; `bounds` looks
at the numbers, `claims` at what a member says of its work. One that lies plausibly about that is not caught.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tsugi_kpool.core.likeness import possible as possible_about
from tsugi_kpool.core.messages import (
    AdapterOffer,
    Beat,
    CheckpointOffer,
    DataPart,
    DataRequest,
    Evaluated,
    Fell,
    Hello,
    Message,
    SlotRequest,
    StopRequest,
    StoreGet,
    StorePut,
)
from tsugi_kpool.core.messages.bounds import LARGEST, MAX_REASON, MAX_WORD, measured, sound, sound_beat
from tsugi_kpool.core.replica import reach
from tsugi_kpool.core.rounds.statements import KEY_BYTES

from .claims import implausible
from .joining import refusal
from .refusals import Kind
from .seats import SEAT_CHARS, Seats
from .state import HubState

OLD_SEQ = 256
"""A link has never this many messages without an acknowledgement: what is further behind is a replay."""
AHEAD = 2
"""A beat is put together while its replica trains: the buffer may be this many steps ahead of the counter."""
MAX_KEY, MAX_VALUE_BYTES, MAX_KEYS = 200, 4096, 200
"""Of the rendezvous store: gloo's keys are short, its values take about 200 bytes, its keys are one for each pair."""
MAX_TICKET = 64
"""Characters of a launcher's random id: the hub writes it down."""


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
        return self._sequence(message) or implausible(self.state, message)

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

    def _beat(self, beat: Beat, replica_of: int | None) -> Kind | None:
        state = self.state
        if len(beat.pooled) != state.plan.kpool.n or len(beat.activity) > MAX_WORD or not sound_beat(beat):
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


def _went_back(old: Beat, new: Beat) -> bool:
    return new.steps < old.steps or new.samples < old.samples or new.tokens < old.tokens or new.version < old.version
