"""Membership: the group of a generation is formed and let go, and a newcomer gets the fleet's state.

The donor sends this state as one frame of safetensors: anchors and moments. In gradient mode the moments are the
fleet optimizer's, without which a newcomer's next step would differ. In local mode they are the donor's own: a better
start than none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from tsugi_kpool.core.messages import Generation, Message, Refused
from tsugi_kpool.core.replica.ports import Uplink
from tsugi_kpool.exchange.client import ExchangeClient
from tsugi_kpool.exchange.states import STATE_COPIES, STATE_MORE

from .buffer import ElasticBuffer
from .checkpoint_parts import FLEET, OWN, anchors
from .collective import FORM_S, CollectiveError, GlooGroup, Group, MeshError, SingleGroup
from .exchanging import ExchangeGroup
from .gradient import GradientUpdate
from .members_only import members_only, refuse
from .network import Network
from .reaching import Reaching
from .sealed import Nonces, Seal, SealedGroup
from .sideband_store import SidebandStore
from .state import ANCHOR, Tensors, part, prefixed

GroupFactory = Callable[[Generation], Group | ExchangeGroup]


class Membership:
    """The group of this replica. All methods but `heed` and `overtaken` belong to the aggregator's thread.

    Args:
        group_factory: Forms the group of a generation.
    """

    def __init__(self, group_factory: GroupFactory) -> None:
        self._factory = group_factory
        self.reaching: Reaching | None = None
        """Tries, while a group forms, whether its members reach each other; None where all are on one machine."""
        self.group: Group | ExchangeGroup | None = None
        self.generation = 0
        """Newest generation that was formed here."""
        self.tried = 0
        """Newest generation whose group we began to form."""
        self._newest = 0
        """Newest generation that was ordered."""
        self.first = False
        """Whether we are the newest generation's first member, which does what only one needs to do."""
        self.alone = False
        """Whether the newest generation has one member. Both stay valid when its group is let go."""

    @property
    def severed(self) -> bool:
        """Whether a member of the group has gone. Asked between collectives: during one, the collective fails by
        itself."""
        return self.group is not None and self.group.severed

    def heed(self, order: Message, over: bool) -> None:
        """Link thread: end a collective that has become useless: by a newer generation or a refusal, or because
        `over` says so."""
        if isinstance(order, Generation):
            self._newest = max(self._newest, order.generation)
        group = self.group
        if group is not None and (over or self._newest > self.tried or isinstance(order, Refused)):
            group.interrupt()

    def overtaken(self, generation: int) -> bool:
        """Return whether the hub has ordered a newer generation than this one."""
        return self._newest > generation

    def interrupt(self) -> None:
        """Make a waiting collective fail at once. Called from another thread."""
        if (group := self.group) is not None:
            group.interrupt()

    def form(self, order: Generation, buffer: ElasticBuffer, version: int | None) -> int | None:
        """Form the generation's group. Buffers and live values stay as they are, except a newcomer's.

        Args:
            order: The hub's.
            buffer: Ours.
            version: Ours; None when we have never been in a group.

        Returns:
            Our version.

        Raises:
            CollectiveError: somebody has gone.
        """
        # Set before the group exists: `heed` ends every group that is older than the newest generation, and would end
        # this one.
        self.tried = order.generation
        self.let_go()
        if self.reaching is not None and len(order.members) > 1:
            self.reaching.begin(order)
        self.group = self._factory(order)
        self.first, self.alone = self.group.rank == 0, self.group.world == 1
        if order.newcomers:
            version = _adopt(order, self.group, buffer, version)
        self.generation = order.generation
        return version

    def let_go(self) -> None:
        """Close the group."""
        if self.group is not None:
            self.group.close()
        self.group = None


def _adopt(order: Generation, group: Group | ExchangeGroup, buffer: ElasticBuffer, version: int | None) -> int | None:
    """Broadcast the donor's anchors to all. A newcomer that has the same ones already keeps what it has buffered."""
    root, newcomer = order.members.index(order.donor), order.members[group.rank] in order.newcomers
    if isinstance(group, ExchangeGroup) and not newcomer and group.rank != root:
        return version  # nobody waits for it: the exchange keeps what the donor gives
    state = shared(group, root, buffer)
    there = version == order.version and same(buffer, state)
    if newcomer and not there:
        take_over(buffer, state, order.version)
        return order.version
    return version


def gloo_groups(
    uplink: Uplink, replica: int, network: Network, timeout_s: float, overtaken: Callable[[int], bool]
) -> GroupFactory:
    """Return a factory of gloo groups. Their rendezvous goes over the sideband; on one machine only members can be in
    them. Where the order brings a key, members seal what they send.

    Args:
        uplink: Ours.
        replica: Our number.
        network: Where this machine's replicas are reached.
        timeout_s: Deadline of every collective.
        overtaken: Whether the hub has ordered a newer generation than this one.
    """
    return _GlooGroups(uplink, replica, network, timeout_s, overtaken).form


class _GlooGroups:
    """Forms a replica's groups, one generation after the other; see `gloo_groups`."""

    def __init__(
        self, uplink: Uplink, replica: int, network: Network, timeout_s: float, overtaken: Callable[[int], bool]
    ) -> None:
        self._uplink, self._replica, self._network = uplink, replica, network
        self._timeout_s, self._overtaken = timeout_s, overtaken
        self._nonces = Nonces()
        """Of all groups of this process: none is used twice."""

    def form(self, order: Generation) -> Group:
        if len(order.members) == 1:
            return SingleGroup()
        group = self._connected(order)
        if not order.group_key:
            return group
        return SealedGroup(group, Seal(order.group_key, order.generation, order.members, group.rank, self._nonces))

    def _connected(self, order: Generation) -> GlooGroup:
        begin = partial(self._begin, order)
        # Between machines the addresses of a connection may differ at its two ends (NAT), so that nobody can tell.
        # There a stranger's connection can break a round, which the user has accepted, but not change one: parts are
        # sealed.
        if self._network.trusted and not self._network.loopback:
            return begin(0)
        try:
            return members_only(begin, lambda group, _: group.stranger(), GlooGroup.close)
        except ConnectionError as error:
            raise CollectiveError(str(error)) from error

    def _begin(self, order: Generation, attempt: int) -> GlooGroup:
        rank, world = order.members.index(self._replica), len(order.members)
        prefix, over = f"epoch{order.generation}/{attempt}/", partial(self._overtaken, order.generation)
        store = SidebandStore(self._uplink, prefix, min(self._timeout_s, FORM_S), over)
        try:
            return GlooGroup(store, rank, world, self._network.address, self._timeout_s)
        except MeshError:
            # One may have died, or the others have formed theirs with a stranger in our place: from this they learn
            # it, and need not wait for us. The hub, who hears of it, orders another generation.
            refuse(store, rank)
            raise


def shared(group: Group | ExchangeGroup, root: int, buffer: ElasticBuffer) -> Tensors:
    """Return the donor's state. A collective of a group: all members take part, whether they need it or not. Over an
    exchange the donor and the newcomers do.

    Args:
        group: The generation's.
        root: The donor's rank in it.
        buffer: Ours; the donor gives what is in it.

    Raises:
        CollectiveError: somebody has gone, or what came is no such frame.
    """
    frame = None
    if group.rank == root:
        frame = save({**anchors(buffer), **prefixed(buffer.moments(), OWN)})
    most = most_state(buffer)
    frame = group.share(frame, most) if isinstance(group, ExchangeGroup) else _broadcast(group, root, frame, most)
    try:
        tensors: Tensors = load(frame)
    except SafetensorError as error:
        raise CollectiveError(f"the donor's state cannot be read: {error}") from error
    if tensors.get(ANCHOR) is None or tensors[ANCHOR].shape != buffer.update.anchor.shape:
        raise CollectiveError("the donor's anchors are another pool's")
    return tensors


def most_state(buffer: ElasticBuffer) -> int:
    """Return the most bytes that a state of our pool can have: whoever names more takes our memory."""
    anchor = buffer.update.anchor
    return STATE_COPIES * anchor.numel() * anchor.element_size() + STATE_MORE


def _broadcast(group: Group, root: int, given: bytes | None, most: int) -> bytes:
    """Return the donor's bytes: their number first, then they themselves.

    Raises:
        CollectiveError: somebody has gone, or the donor names a size that no state of this pool has.
    """
    frame = torch.frombuffer(bytearray(given or b"\0"), dtype=torch.uint8)
    size = torch.tensor([frame.numel()], dtype=torch.int64)
    group.broadcast(size, root)
    if not 0 < int(size) <= most:
        raise CollectiveError(f"the donor gives a state of {int(size)} bytes, where this pool's has {most} at most")
    if given is None:
        frame = torch.empty(int(size), dtype=torch.uint8)
    group.broadcast(frame, root)
    return frame.numpy().tobytes()


def exchange_groups(client: ExchangeClient, replica: int, overtaken: Callable[[int], bool]) -> GroupFactory:
    """Return a factory of groups whose members speak through an exchange.

    Args:
        client: Our connection to it.
        replica: Our number.
        overtaken: Whether the hub has ordered a newer generation than this one.
    """

    def form(order: Generation) -> Group | ExchangeGroup:
        return SingleGroup() if len(order.members) == 1 else ExchangeGroup(client, order, replica, overtaken)

    return form


def same(buffer: ElasticBuffer, tensors: Tensors) -> bool:
    """Return whether these are our anchors."""
    return torch.equal(buffer.update.anchor, tensors[ANCHOR])


def take_over(buffer: ElasticBuffer, tensors: Tensors, version: int) -> None:
    """Take over this state of this version. What is buffered was trained on another one, and is discarded."""
    buffer.adopt(tensors[ANCHOR], version)
    if isinstance(buffer.update, GradientUpdate):
        buffer.update.inherit(part(tensors, FLEET))
    else:
        buffer.inherit(part(tensors, OWN))
