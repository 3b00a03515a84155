"""Sealed collectives: nobody on the way can read, change, repeat or exchange what replicas send each other."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from tests.engine.test_members_only import StoreLink
from tests.support import hub_plan
from tests.unit.test_seats import make_dispatcher
from tsugi_kpool.core.effects import Send
from tsugi_kpool.core.hub.group_key import group_key
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.orders import generation_order
from tsugi_kpool.core.messages import Generation, Hello
from tsugi_kpool.core.replica.orders import KEY_BYTES
from tsugi_kpool.engine import sealed as sealed_module
from tsugi_kpool.engine.collective import CollectiveError, GlooGroup, Group
from tsugi_kpool.engine.membership import gloo_groups
from tsugi_kpool.engine.network import LOOPBACK
from tsugi_kpool.engine.sealed import Nonces, Seal, SealedGroup, sealed_bytes
from tsugi_kpool.engine.thread_group import ThreadGroup, ThreadRendezvous

KEY = bytes(range(KEY_BYTES))
MEMBERS = (3, 7)


class Carrier(ThreadGroup):
    """A group over a network that reads along and changes what it likes.

    Args:
        change: Of a member's own view of the parts that it gathered, and their number.
    """

    def __init__(self, rank: int, shared: ThreadRendezvous, change: Callable[[list[Tensor], int], list[Tensor]]):
        super().__init__(rank, shared)
        self._change, self.carried, self.closed = change, [], False

    def gather(self, payload: Tensor) -> list[Tensor]:
        self.carried.append(payload.clone())
        return self._change(super().gather(payload), len(self.carried))

    def scatter(self, parts: list[Tensor], receives: list[int]) -> list[Tensor]:
        self.carried += parts
        return self._change(super().scatter(parts, receives), len(self.carried))

    def close(self) -> None:
        self.closed = True


def honest(parts: list[Tensor], number: int) -> list[Tensor]:
    del number
    return parts


def both(talk: Callable[[Group, int], object], change=honest, key: bytes = KEY, nonces=None) -> list:
    """What the two members' talk gives, or what it raised; and the groups that carried it."""
    shared, found = ThreadRendezvous(2, timeout_s=10.0), [None, None]
    carriers = [Carrier(rank, shared, change if rank == 0 else honest) for rank in range(2)]
    counters = nonces or [Nonces(), Nonces()]

    def member(rank: int) -> None:
        group = SealedGroup(carriers[rank], Seal(key, 1, MEMBERS, rank, counters[rank]))
        try:
            found[rank] = talk(group, rank)
        except CollectiveError as error:
            found[rank] = error

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60.0)
        assert not each.is_alive()
    return [*found, carriers]


def payload(rank: int, size: int = 300) -> Tensor:
    return torch.arange(size, dtype=torch.int64).mul(rank + 2).remainder(256).to(torch.uint8)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1000])
def test_members_have_what_was_sent_whatever_its_size(monkeypatch, size):
    monkeypatch.setattr(sealed_module, "CHUNK_BYTES", 64)

    def talk(group: Group, rank: int) -> tuple[list[Tensor], Tensor, Tensor]:
        first = torch.tensor([7 if rank == 1 else 0], dtype=torch.int64)
        group.broadcast(first, 1)
        values = torch.full((size,), 0.5 + rank)
        group.broadcast(values, 1)
        return group.gather(payload(rank, size)), first, values

    *found, _ = both(talk)
    for parts, first, values in found:
        assert all(torch.equal(part, payload(rank, size)) for rank, part in enumerate(parts))
        assert first.item() == 7
        assert torch.equal(values, torch.full((size,), 1.5))


def shards(rank: int) -> list[Tensor]:
    """To rank 0 two bytes, to rank 1 none more than five."""
    return [payload(rank, 2), payload(rank + 1, 5)]


def test_each_member_has_its_own_shards_whatever_their_sizes():
    *found, carriers = both(lambda group, rank: group.scatter(shards(rank), [(2, 5)[rank]] * 2))
    for rank, parts in enumerate(found):
        assert all(torch.equal(part, shards(sender)[rank]) for sender, part in enumerate(parts))
    assert [each.numel() for each in carriers[0].carried] == [sealed_bytes(2), sealed_bytes(5)]


def test_a_shard_that_was_altered_or_is_for_somebody_else_names_its_sender():
    error, _, carriers = both(lambda group, rank: group.scatter(shards(rank), [(2, 5)[rank]] * 2), flipped(-1))
    assert isinstance(error, CollectiveError)
    assert "replica 7's part does not open" in str(error)
    assert carriers[0].closed
    seals = [Seal(KEY, 1, MEMBERS, rank, Nonces()) for rank in range(2)]
    for_itself = seals[1].seal(payload(1), b"scat", 1, 1)
    with pytest.raises(CollectiveError, match="replica 7"):
        seals[0].open(for_itself, payload(0), b"scat", 1, 1, 0)


def test_nothing_of_a_part_can_be_read_on_the_way():
    *_, carriers = both(lambda group, rank: group.gather(torch.full((4096,), 65, dtype=torch.uint8)))
    for carrier in carriers:
        (travelled,) = carrier.carried
        assert travelled.numel() == sealed_bytes(4096)
        assert bytes(travelled.numpy()).count(b"AAAA") == 0


def flipped(at: int) -> Callable[[list[Tensor], int], list[Tensor]]:
    def change(parts: list[Tensor], number: int) -> list[Tensor]:
        del number
        parts[1][at] ^= 1
        return parts

    return change


@pytest.mark.parametrize("at", [0, 7, 8, 23, 24, 200, -16, -1])
def test_a_changed_bit_ends_the_round_with_the_senders_name(at):
    """Whatever it is in: number, incarnation, content or tag."""
    error, other, carriers = both(lambda group, rank: group.gather(payload(rank)), flipped(at))
    assert isinstance(error, CollectiveError)
    assert "replica 7" in str(error)
    assert carriers[0].closed, "others that wait for us wake up"
    assert not isinstance(other, CollectiveError), "what came to the other one was whole"


def twice(group: Group, rank: int) -> list[Tensor]:
    group.gather(payload(rank))
    return group.gather(payload(rank))


def test_a_part_that_is_sent_again_is_refused():
    kept: list[Tensor] = []

    def repeat(parts: list[Tensor], number: int) -> list[Tensor]:
        kept.append(parts[1])
        return [parts[0], kept[0]]

    error, _, _ = both(twice, repeat)
    assert "replica 7" in str(error)
    assert "sent before" in str(error)


def test_a_part_of_a_later_or_another_members_round_is_refused():
    """Held back and delivered out of turn, or our own held out to us as another's."""

    def swapped(parts: list[Tensor], number: int) -> list[Tensor]:
        del number
        return [parts[1], parts[0]]

    error, _, _ = both(twice, swapped)
    assert "replica 7" in str(error)
    seals = [Seal(KEY, 1, MEMBERS, rank, Nonces()) for rank in range(2)]
    later = seals[1].seal(payload(1), b"gath", 2)
    with pytest.raises(CollectiveError, match="replica 7"):
        seals[0].open(later, payload(0), b"gath", 1, 1)
    with pytest.raises(CollectiveError, match="replica 7"):
        seals[0].open(later, payload(0), b"cast", 2, 1)
    seals[0].open(later, payload(0), b"gath", 2, 1)


def test_a_process_of_another_generation_or_key_is_not_heard():
    for key, generation in ((KEY, 2), (bytes(KEY_BYTES), 1)):
        foreign = Seal(key, generation, MEMBERS, 1, Nonces()).seal(payload(1), b"gath", 1)
        with pytest.raises(CollectiveError, match="replica 7"):
            Seal(KEY, 1, MEMBERS, 0, Nonces()).open(foreign, payload(0), b"gath", 1, 1)


def test_a_second_process_cannot_go_on_in_a_members_place():
    ours = Seal(KEY, 1, MEMBERS, 0, Nonces())
    ours.open(Seal(KEY, 1, MEMBERS, 1, Nonces()).seal(payload(1), b"gath", 1), payload(0), b"gath", 1, 1)
    numbers = Nonces()
    numbers.take(10)
    second = Seal(KEY, 1, MEMBERS, 1, numbers).seal(payload(1), b"gath", 2)
    with pytest.raises(CollectiveError, match="another process"):
        ours.open(second, payload(0), b"gath", 2, 1)


def test_no_key_seals_twice_with_one_nonce_however_often_groups_form(monkeypatch):
    """GCM gives its key away if it does. Also in a generation's next group, as when forming it is tried again."""
    monkeypatch.setattr(sealed_module, "CHUNK_BYTES", 128)
    used: Counter[tuple[bytes, bytes]] = Counter()

    true = sealed_module.AESGCM

    class Watched:
        def __init__(self, key: bytes) -> None:
            self._key, self._cipher = key, true(key)
            self.decrypt = self._cipher.decrypt

        def encrypt(self, nonce: bytes, data, about: bytes) -> bytes:
            used[self._key, nonce] += 1
            return self._cipher.encrypt(nonce, data, about)

    monkeypatch.setattr(sealed_module, "AESGCM", Watched)
    nonces = [Nonces(), Nonces()]
    for _ in range(3):
        both(twice, nonces=nonces)
    assert len(used) == 3 * 2 * 2 * 3  # groups, members, rounds, chunks
    assert set(used.values()) == {1}


def test_a_generations_key_is_that_of_its_processes_and_of_no_others():
    keys = {
        group_key(secret, run, generation, incarnations)
        for secret in ("a", "b")
        for run in ("r", "s")
        for generation in (1, 2)
        for incarnations in (("x", "y"), ("x", "z"), ("y", "x"), ("x",))
    }
    assert len(keys) == 32
    assert {len(key) for key in keys} == {KEY_BYTES}
    assert group_key("", "r", 1, ("x",)) == b""


@pytest.mark.parametrize(("sealed", "secret", "length"), [(True, "s", 32), (True, "", 0), (False, "s", 0)])
def test_the_hub_gives_a_key_where_parts_leave_the_machine_and_gives_it_again_when_asked_again(
    sealed, secret, length
):
    hub = Hub(hub_plan(sealed=sealed), 0.0)
    make_dispatcher(hub, secret)
    orders = []
    for replica in range(2):
        joins = Hello(1, replica, f"i{replica}", "host", 1, "c0ffee", "layout")
        orders += [each.message for each in hub.receive(joins, 0.0) if isinstance(each, Send)]
    keys = {order.group_key for order in orders if isinstance(order, Generation)}
    assert {len(key) for key in keys} == {length}
    assert {generation_order(hub).group_key} == keys


def test_a_sealed_gloo_group_ends_a_round_for_an_altered_part(monkeypatch):
    """Over sockets: the same factory that replicas use. Then the same processes form another group."""
    original, altered = GlooGroup.gather, []

    def gather(group: GlooGroup, sealed: Tensor) -> list[Tensor]:
        parts = original(group, sealed)
        if group.rank == 0 and not altered:
            altered.append(True)
            parts[1][40] ^= 4
        return parts

    monkeypatch.setattr(GlooGroup, "gather", gather)
    store, found = HashStore(), [[], []]
    meeting = threading.Barrier(2, timeout=30.0)

    def member(rank: int) -> None:
        make = gloo_groups(StoreLink(store), rank, LOOPBACK, 8.0, lambda generation: False)
        for generation in (1, 2):
            group = make(Generation(generation, (0, 1), 0, group_key=KEY))
            try:
                found[rank].append([int(part[0]) for part in group.gather(payload(rank).add(rank + 1))])
            except CollectiveError as error:
                found[rank].append(str(error))
            meeting.wait()
            group.close()

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60.0)
        assert not each.is_alive()
    assert "replica 1" in found[0][0]
    assert found[1] == [[1, 2], [1, 2]]
    assert found[0][1] == [1, 2]
