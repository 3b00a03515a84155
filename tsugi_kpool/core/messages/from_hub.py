"""Messages from the hub to a replica: answers and orders."""

from __future__ import annotations

from .frame import Message

BEAT_SEQ = 0
"""The seq of the answer to a beat, which has no number: the answer shows that the hub is alive."""


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
    """The hub's monotonic clock when it answered."""


class Refused(Message, frozen=True):
    """The hub does not let this replica in, or has removed it, or the run has failed. The replica ends with this
    reason.

    If lost, the answer to the replica's next Hello or beat says it again.
    """

    reason: str
    fenced: bool = False
    """The run goes on without this process: the hub took it for dead. A new process may take its place."""
    quarantined: bool = False
    """The run goes on without this replica because it sent impossible numbers. A person should look before it is
    started again."""


class Totals(Message, frozen=True):
    """The sums of everybody's Figures. If lost, the Figures are sent again and answered again."""

    seq: int
    """Of the replica's own Figures, which are settled by it."""
    number: int
    """That of the Figures."""
    replicas: int
    """Whose figures are in it: all that trained when the last ones came."""
    sums: dict[str, float]
    """By name, over all of them."""


class NotTaken(Message, frozen=True):
    """The hub has not taken in what this replica says of itself: it cannot be. Said once in a while as long as that
    lasts; may be lost. Only a process that has been let in hears it.
    """

    message: str
    """The name of what was refused, such as Beat."""
    kind: str
    """Why (core.hub.refusals.Kind)."""
    times: int
    """How often that has happened with this replica's."""


class Generation(Message, frozen=True):
    """An order: these members form the group of this generation. Repeated until their beats show the generation."""

    generation: int
    members: tuple[int, ...]
    version: int
    """Rounds committed before it. A replica that reduced a round and missed its end learns from this how it ended."""
    active: tuple[int, ...] = ()
    """Adapters that train from now on; empty: all."""
    newcomers: tuple[int, ...] = ()
    """Members that begin from the donor's anchors. All others have these anchors already, and keep what they have
    buffered."""
    donor: int = 0
    group_key: bytes = b""
    """From which the members make the keys that seal what they send each other; empty: they send in plain."""
    ticket: str = ""
    """Shows the exchange that the donor is one (core.hub.tickets)."""


class Fire(Message, frozen=True):
    """An order: aggregate these adapters. Repeated until the round has been reduced everywhere."""

    generation: int
    round: int
    adapters: tuple[int, ...]
    members: tuple[int, ...]
    """The generation's members. Not in the frame, because whoever may act on it knows them."""
    reason: str
    version: int = 0
    """Rounds committed before this one. It shows whether the round before it was committed."""
    active: tuple[int, ...] = ()
    """Adapters that train from now on; empty: all."""
    shared: int = 0
    """The newest committed round that the exchange has reduced; 0: none. So it learns which of its results count."""
    ticket: str = ""
    """Shows the exchange that this round was fired (core.hub.tickets)."""


class Check(Message, frozen=True):
    """An order: this round is reduced everywhere; give these members what its owner got, and let them sum it again.

    Repeated to those whose Checked has not come.
    """

    generation: int
    round: int
    owner: int
    """The member whose shard is checked."""
    checkers: tuple[int, ...]
    """Who checks: one member or, when it has found something wrong, all."""


class Compare(Message, frozen=True):
    """An order: this two-stage round is reduced everywhere, and not alike; say what each member has told you.

    Repeated to those whose Compared has not come.
    """

    generation: int
    round: int


class Commit(Message, frozen=True, omit_defaults=True):
    """An order: the round was reduced on every member with one digest; apply it. Repeated as needed."""

    generation: int
    round: int
    active: tuple[int, ...] = ()
    """Adapters that train from now on; empty: all."""
    save: bool = False
    """These anchors become a checkpoint: every replica writes its part."""
    evaluator: int | None = None
    """The replica that copies these anchors and evaluates the copy between its steps; None: nobody does."""
    missed: tuple[int, ...] = ()
    """Over an exchange: members of the round whose parts were not counted. They keep them buffered."""
    writer: int | None = None
    """With `save`, who writes the anchors; None: the generation's first member."""


class Abort(Message, frozen=True):
    """An order: forget this round's result; what was shipped stays in the buffers. Repeated as needed."""

    generation: int
    round: int
    reason: str


class Lease(Message, frozen=True):
    """Positions [start, stop) of the data order to train on; empty means that there is no more."""

    ticket: int
    start: int
    stop: int
    micro_batch: int = 0
    """Samples in one step of this range; 0: as many as the run's configuration says."""


class StoreValue(Message, frozen=True):
    """The value of a key, or None when it is not there yet."""

    key: str
    value: bytes | None


class Drain(Message, frozen=True):
    """An order: start no further step. Repeated until the replica's beats say drained."""

    reason: str


class Refill(Message, frozen=True):
    """An order: there is data again, because a replica has left; ask for it. Repeated while beats say drained."""


class Finish(Message, frozen=True):
    """An order: every contribution is committed; this version is the result. Repeated as needed."""

    version: int
    evaluate: bool
    """Whether to evaluate; false after an interrupt: keep the result, skip everything else."""
    first: int = 0
    """Lowest remaining replica, which exports the adapter."""
    writer: int | None = None
    """Who writes the anchors of the last checkpoint; None: the generation's first member."""
