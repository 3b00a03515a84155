"""Members of an exchange that are a round behind: results that are kept, receipts, and who gets one when."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from tests.exchange.support import TICKETS, body, delta, mean_of, member, part, round_of, running
from tests.support import await_true
from tsugi_kpool.codec.header import weights_of
from tsugi_kpool.core.rounds.closing import Quorum
from tsugi_kpool.core.rounds.told import told_of
from tsugi_kpool.exchange.client import ExchangeClient, ExchangeError
from tsugi_kpool.exchange.frames import Kind, Part, encode
from tsugi_kpool.exchange.reduction import opened
from tsugi_kpool.exchange.rounds import OVERTAKEN
from tsugi_kpool.exchange.turns import Turn, Turns

pytestmark = pytest.mark.timeout(120)

AT_ONCE = Quorum(0.5, 0.0)
"""A round closes without whoever is on its way."""


def two_of_three(clients: list[ExchangeClient], said: Part) -> bytes:
    """A round without the third; its result."""
    got: dict[int, bytes] = {}

    def ship(replica: int) -> None:
        got[replica] = bytes(clients[replica].reduce(said, body(delta(replica, said.round)))[1])

    threads = [threading.Thread(target=ship, args=(each,), daemon=True) for each in (0, 1)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert got[0] == got[1]
    return got[0]


def test_who_is_behind_gets_both_results_and_need_not_send_its_part(tmp_path: Path) -> None:
    with running(tmp_path, quorum=AT_ONCE) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        rounds = [part(number, adapters=(number % 4, number % 4 + 4)) for number in (1, 2, 3)]
        results = [two_of_three(clients, said) for said in rounds[:2]]
        for said, result in zip(rounds, results, strict=False):
            sent = clients[2].sent
            answer = clients[2].reduce(said, b"")
            assert bytes(answer[1]) == result
            assert 2 in answer[0].missed
            assert clients[2].sent - sent < len(body(delta(2))), "a map, and no numbers"
        two_of_three(clients, rounds[2])
        with pytest.raises(ExchangeError, match=OVERTAKEN):
            clients[2].reduce(rounds[0], body(delta(2)))


def test_an_open_round_takes_no_part_without_numbers(tmp_path: Path) -> None:
    with running(tmp_path) as exchange:
        client = member(exchange.port, 0)
        with pytest.raises(ExchangeError, match="a part of 0 bytes"):
            client.reduce(part(1), b"")


def test_another_process_of_the_exchange_has_both_results_too(tmp_path: Path) -> None:
    rounds = [part(number, adapters=(number, number + 4)) for number in (1, 2)]
    with running(tmp_path, quorum=AT_ONCE) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        results = [two_of_three(clients, said) for said in rounds]
        port = exchange.port
    with running(tmp_path, port=port, quorum=AT_ONCE):
        for said, result in zip(rounds, results, strict=True):
            assert bytes(clients[2].reduce(said, b"")[1]) == result


def test_a_receipt_shows_whose_parts_count_with_what(tmp_path: Path) -> None:
    with running(tmp_path) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        said = part(1)
        answers = round_of(clients, 1)
        headers, _ = opened(said, answers[0][0], np.frombuffer(answers[0][1], np.uint8))
        told = told_of((0, 1, 2), weights_of(headers), answers[0][0].durables)
        assert {client.receipt for client in clients} == {TICKETS.of_result(1, 1, told)}
        clients[0].reduce(said, body(delta(0)))
        assert clients[0].receipt == TICKETS.of_result(1, 1, told), "of a result that is asked for again, too"


class OneByOne(Turns):
    """As where the hub's link is short."""

    def next(self, members: int, size: int) -> Turn:
        super().next(members, size)
        return Turn(1, 0.2)


def test_one_after_the_other_all_get_it_though_one_of_them_never_says_so(tmp_path: Path) -> None:
    with running(tmp_path) as exchange:
        exchange.exchange.answers.turns = OneByOne()
        clients = [member(exchange.port, replica) for replica in range(3)]
        answers = round_of(clients, 1)
        assert {bytes(each[1]) for each in answers} == {bytes(answers[0][1])}
        said, whole = part(2), body(delta(0, 2))
        clients[0]._live.sendall(encode(Kind.PART, said, len(whole)) + whole)  # it gives its part, and reads nothing

        def here() -> bool:
            collecting = exchange.exchange._rounds.collecting
            return collecting is not None and 0 in collecting.parts

        await_true(here, "its part")
        got: dict[int, object] = {}

        def ship(replica: int) -> None:
            got[replica] = mean_of(said, clients[replica].reduce(said, body(delta(replica, 2))))

        threads = [threading.Thread(target=ship, args=(each,), daemon=True) for each in (1, 2)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(60)
        assert set(got) == {1, 2}
