"""The disk is full and the exchange is killed while a round's result goes out: no round has two results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.exchange.support import body, delta, mean_of, member, part, round_of, running
from tsugi_kpool.core.rounds.closing import Quorum
from tsugi_kpool.exchange.books import Books
from tsugi_kpool.exchange.client import ExchangeError
from tsugi_kpool.exchange.rounds import LOST

pytestmark = pytest.mark.timeout(120)

FIRST_COME = Quorum(0.3, 0.0)
"""A round closes with the first part."""


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_who_lacks_a_result_that_is_on_no_disk_gets_no_other_one_and_nobody_could_commit_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Books.write
    with running(tmp_path, quorum=FIRST_COME) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        clients[0].reduce(part(1), body(delta(0, 1)))
        assert clients[0].receipt, "what is on the disk has one"
        monkeypatch.setattr(Books, "write", full)
        clients[0].reduce(part(2), body(delta(0, 2)))
        assert not clients[0].receipt, "all have to say that they have it, before the hub commits it"
        clients[1].reduce(part(2), body(delta(1, 2)))
        assert not clients[1].receipt, "whoever comes late, too"
    monkeypatch.setattr(Books, "write", write)
    lost = exchange.unwritten
    assert lost == {0: (1, 2), 2: (1, 2)}
    with running(tmp_path, port=exchange.port, quorum=FIRST_COME, lost=lost) as exchange:
        with pytest.raises(ExchangeError, match=LOST):
            clients[2].reduce(part(2), body(delta(2, 2)))
        assert clients[2].reduce(part(1), b"")[0].missed == (1, 2), "the one before is there"
        # The hub has dropped it: its parts are still where they were, and nothing of it counts.
        clients[0].settled = 1
        clients[0].reduce(part(3, settled=1, version=1), body(delta(0, 3)))
        assert clients[0].receipt
        assert exchange.unwritten == {}, "the disk knows all again"


def test_what_a_lost_round_has_used_up_is_not_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All members had it, so that it was committed: what round 1 had left over is in it."""
    write = Books.write
    with running(tmp_path) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        round_of(clients, 1)
        monkeypatch.setattr(Books, "write", full)
        round_of(clients, 2)
    monkeypatch.setattr(Books, "write", write)
    with running(tmp_path, port=exchange.port, lost=exchange.unwritten) as exchange:
        clients[0].settled = 2
        assert not clients[0].left_over(1, part(1).size, 8)
        answers = round_of(clients, 3)
        plain = np.mean([delta(replica, 3) for replica in range(3)], axis=0)
        assert np.abs(mean_of(part(3), answers[0]) - plain).max() < np.abs(plain).max() / 100


def test_where_the_disk_has_room_again_everything_is_known_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Books.write
    with running(tmp_path) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        monkeypatch.setattr(Books, "write", full)
        round_of(clients, 1)
        assert {client.receipt for client in clients} == {""}
        assert exchange.unwritten == {0: (1, 1), 2: (1, 1)}
        monkeypatch.setattr(Books, "write", write)
        found = round_of(clients, 2)
        assert all(client.receipt for client in clients)
        assert exchange.unwritten == {}
    with running(tmp_path, port=exchange.port):
        assert bytes(clients[1].reduce(part(2), body(delta(1, 2)))[1]) == bytes(found[0][1])
