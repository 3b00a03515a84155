"""Rounds without everybody: members that die, come too late, or are another process, at a real exchange."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.exchange.support import ADAPTERS, SIZE, Running, body, delta, mean_of, member, part, round_of, running
from tests.exchange.test_rounds import coded
from tests.support import await_true
from tsugi_kpool.core.rounds.closing import GONE_S, MOST_MISSES, Quorum
from tsugi_kpool.exchange.books import Kept
from tsugi_kpool.exchange.client import ExchangeClient
from tsugi_kpool.exchange.frames import HEADER, Kind, Part, Result, encode
from tsugi_kpool.exchange.reduction import Left, opened, rest_of
from tsugi_kpool.exchange.rounds import TWICE, Refusal, Rounds

pytestmark = pytest.mark.timeout(120)

Got = dict[int, tuple[Result, bytearray]]


def shipping(clients: list[ExchangeClient], got: Got, said: Part, *replicas: int) -> list[threading.Thread]:
    def ship(replica: int) -> None:
        got[replica] = clients[replica].reduce(said, body(delta(replica, said.round)))

    threads = [threading.Thread(target=ship, args=(each,), daemon=True) for each in replicas]
    for each in threads:
        each.start()
    return threads


def test_who_dies_while_parts_come_in_is_not_waited_for_and_nobody_needs_to_say_so(tmp_path: Path) -> None:
    """Its part is half sent. The others' is the round, and the next one has it back."""
    with running(tmp_path) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        round_of(clients, 1)
        got: Got = {}
        said, whole = part(2), body(delta(2, 2))
        clients[2]._live.sendall(encode(Kind.PART, said, len(whole)) + whole[: len(whole) // 2])
        threads = shipping(clients, got, said, 0, 1)
        clients[2].close()
        for each in threads:
            each.join(60)
        assert [got[each][0].missed for each in (0, 1)] == [(2,), (2,)]
        assert bytes(got[0][1]) == bytes(got[1][1])
        third = np.float32(1 / 3)  # of three members, whoever is there
        expected = coded(coded(delta(0, 2)) * third + coded(delta(1, 2)) * third + left_over(exchange))
        np.testing.assert_array_equal(mean_of(said, got[0])[0], expected[0])
        assert left_over(exchange).any()
        clients[2] = member(exchange.port, 2)
        after = round_of(clients, 3)
        assert after[0][0].missed == (), "it is back"


def left_over(exchange: Running) -> np.ndarray:
    """What round 1 has left over: it is settled by now."""
    left = exchange.exchange._rounds._left
    return rest_of([left[0], left[2]], SIZE)


def test_a_part_that_came_with_its_senders_last_breath_counts(tmp_path: Path) -> None:
    with running(tmp_path) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        round_of(clients, 1)
        got: Got = {}
        said, whole = part(2, durable=7), body(delta(2, 2))
        clients[2]._live.sendall(encode(Kind.PART, said, len(whole)) + whole)

        def here() -> bool:
            collecting = exchange.exchange._rounds.collecting
            return collecting is not None and 2 in collecting.parts

        await_true(here, "its part")
        clients[2].close()
        for each in shipping(clients, got, part(2, durable=5), 0, 1):
            each.join(60)
        assert got[0][0].missed == ()
        assert got[0][0].durables == (5, 5, 7)


class Clock:
    """Rounds without sockets, at moments that a test chooses."""

    def __init__(self, quorum: Quorum) -> None:
        self.rounds = Rounds({}, None, None, ADAPTERS, quorum)

    def give(self, replica: int, said: Part, now_s: float) -> bool:
        raw = body(delta(replica, said.round))
        self.rounds.check(replica, said, len(raw))
        return self.rounds.take(replica, said, raw, now_s)

    def close(self) -> Result:
        collected = self.rounds.close()
        self.rounds.settle(collected)
        reduced, _ = self.rounds.reduce(collected)
        left = [Left(SIZE, np.empty(0, np.uint8)) for _ in collected.part.adapters]
        self.rounds.finish(collected, Kept(collected.part, reduced, left))
        return reduced.result


def test_a_slow_part_is_left_out_and_after_a_few_misses_waited_for() -> None:
    clock = Clock(Quorum(0.5, 2.0, 30.0))
    for number in range(1, MOST_MISSES + 1):
        now_s = 100.0 * number
        assert clock.give(0, part(number), now_s)
        assert clock.rounds.closes_s({}) == float("inf"), "one of three is too few"
        assert clock.give(1, part(number), now_s + 1.0)
        assert clock.rounds.closes_s({}) == now_s + 3.0
        assert clock.rounds.closes_s({2: now_s + 1.0}) == now_s + 1.0 + GONE_S
        assert clock.close().missed == (2,)
        assert not clock.give(2, part(number), now_s + 5.0), "a late part of a round that is over changes nothing"
    clock.give(0, part(9), 900.0)
    clock.give(1, part(9), 901.0)
    assert clock.rounds.closes_s({}) == 931.0, "it has missed too often: it is waited for"
    assert clock.give(2, part(9), 925.0)
    assert clock.rounds.closes_s({}) < 0
    assert clock.close().missed == ()


def test_the_same_part_may_come_again_and_another_one_of_the_same_member_may_not() -> None:
    clock = Clock(Quorum())
    assert clock.give(0, part(1, incarnation="a", sequence=4), 1.0)
    assert not clock.give(0, part(1, incarnation="a", sequence=4), 2.0), "its connection broke, and it gives it again"
    for other in ({"incarnation": "b", "sequence": 4}, {"incarnation": "a", "sequence": 5}):
        with pytest.raises(Refusal, match=TWICE):
            clock.give(0, part(1, **other), 3.0)


def test_a_late_member_gets_the_same_result_and_its_bytes_are_not_kept(tmp_path: Path) -> None:
    with running(tmp_path, quorum=Quorum(0.5, 0.0, 30.0)) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        got: Got = {}
        for each in shipping(clients, got, part(1), 0, 1):
            each.join(60)
        assert got[0][0].missed in ((2,), ())
        for each in shipping(clients, got, part(1), 2):
            each.join(60)
        assert got[2][0] == got[0][0]
        assert bytes(got[2][1]) == bytes(got[0][1])
        headers, _ = opened(part(1), got[2][0], np.frombuffer(got[2][1], np.uint8))
        assert len(headers) == 2
        assert HEADER.size < clients[2].received


def test_to_ask_when_a_round_closes_costs_no_more_with_more_members() -> None:
    """It is asked with every part: a walk over all members each time was their square."""

    def calls(members: int) -> float:
        rounds, said = Rounds({}, None, None, ADAPTERS, Quorum(0.5, 2.0, 30.0)), part(1)
        said, raw = msgspec.structs.replace(said, members=tuple(range(members))), body(delta(0, 1))
        made = 0

        def count(_frame: object, event: str, _argument: object) -> None:
            nonlocal made
            made += event == "call"

        for replica in range(members):
            assert rounds.take(replica, said, raw, 1.0)
            sys.setprofile(count)
            closes_s = rounds.closes_s({0: 1.0})
            sys.setprofile(None)
        assert closes_s < 0, "all are here"
        return made / members

    assert calls(400) <= 1.2 * calls(100)
