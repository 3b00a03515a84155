"""Who is in a group: members say which connections they have, and all come to the same verdict."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsugi_kpool.core.replica.acquaintance import Connections, name, shape, stranger

HOST = "127.0.0.1"


def formed(world: int) -> list[Connections]:
    """What the members of a sound group say: the higher rank of every pair has connected to the lower one's port."""
    accepted, made = [[] for _ in range(world)], [[] for _ in range(world)]
    for low, high in itertools.combinations(range(world), 2):
        ends = (HOST, 1000 + low), (HOST, 50_000 + 100 * high + low)
        accepted[low].append(name(*ends))
        made[high].append(name(*reversed(ends)))
    return [Connections(tuple(came), tuple(went)) for came, went in zip(accepted, made, strict=True)]


@pytest.mark.parametrize("world", [2, 3, 5])
def test_a_group_of_members_alone_is_sound(world):
    assert stranger(formed(world)) is None


def test_connections_of_other_threads_do_not_matter():
    """A link that reconnects while the group forms is among what a member has made, and nobody's business."""
    first, second = formed(2)
    other = name((HOST, 5), (HOST, 6))
    assert stranger([Connections(first.accepted, (*first.made, other)), second]) is None


def test_a_stranger_who_took_a_members_place_is_found():
    """The member's own connection is there too, but not in its place: gloo keeps whoever came first."""
    first, second = formed(2)
    taken = Connections((*first.accepted, name((HOST, 1000), (HOST, 9))), first.made)
    assert "come from no member" in stranger([taken, second])


def test_a_member_that_is_connected_to_somebody_else_is_found():
    """A port that a member had announced, and that is another's by now."""
    first, second = formed(2)
    astray = Connections(second.accepted, (name((HOST, 1000), (HOST, 77)),))
    assert stranger([Connections((), first.made), astray]) == "members 0 and 1 are not connected to each other"


@given(st.integers(2, 5), st.data())
def test_any_connection_less_or_more_is_found_by_all(world, data):
    members = formed(world)
    pairs = [(rank, each) for rank, member in enumerate(members) for each in member.accepted]
    rank, lost = data.draw(st.sampled_from(pairs))
    more = data.draw(st.binary(min_size=8, max_size=8).filter(lambda word: word not in {each for _, each in pairs}))
    kept = tuple(each for each in members[rank].accepted if each != lost)
    for changed in (kept, (*members[rank].accepted, more)):
        told = [*members[:rank], Connections(changed, members[rank].made), *members[rank + 1 :]]
        assert stranger(told) is not None


def test_both_ends_give_a_connection_the_same_name():
    near, far = ("127.0.0.1", 40001), ("127.0.0.1", 40002)
    assert name(near, far) == name(far, near) != name(near, ("127.0.0.1", 40003))


@given(host=st.binary(max_size=255), numbers=st.integers(0, 5), tail=st.binary(min_size=1, max_size=300))
def test_an_address_has_the_shape_that_its_own_lengths_say(host, numbers, tail):
    def counted(data: bytes) -> bytes:
        return len(data).to_bytes(8, "little") + data

    address = counted(host) + counted(bytes(136)) + bytes(8 * numbers)
    assert shape(address) == (136, 8 * numbers)
    assert shape(counted(bytes(256)) + counted(bytes(136))) is None, "no host has so long a name"
    assert shape(address[: len(host) + 20]) is None
    assert shape((2**63).to_bytes(8, "little") + tail) is None
