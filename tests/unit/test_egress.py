"""What the hub writes down before it sends, and what it does not wait for."""

from __future__ import annotations

import pytest

from tests.support import hub_plan
from tsugi_kpool.core.effects import Keep, Send
from tsugi_kpool.core.hub.hub import BEAT_ACK
from tsugi_kpool.core.journal import parse
from tsugi_kpool.core.messages import Ack, Commit, Lease, Reduced, Stamps
from tsugi_kpool.core.records import Leased, RoundReduced
from tsugi_kpool.sideband.hub.egress import Egress
from tsugi_kpool.sideband.hub.journal import Journal

REDUCED = Keep(RoundReduced(Reduced(2, 0, "i0", 1, 1, "d", 0.1, 9, (1, 1), 0.0, 0.0)))
LEASED = Keep(Leased(1, Lease(1, 0, 8)))


class Wire:
    """In place of a socket: how many records were on disk when each message was sent."""

    def __init__(self, journal) -> None:
        self._journal, self.sent = journal, []

    def send(self, part, _flags) -> None:
        if part != b"route":
            self.sent.append(len(parse(self._journal.read_bytes()).entries) - 1)


@pytest.fixture
def egress(tmp_path):
    path = tmp_path / "hub.journal"
    journal = Journal(path, lambda told: None)
    journal.open(hub_plan(), 0.0)
    yield (egress := Egress(Wire(path), lambda told: None, journal))
    journal.close()
    assert len(parse(path.read_bytes()).entries) - 1 == egress.kept


def carry_out(egress, *effects) -> list[int]:
    """How many records were on disk when each of these was sent."""
    egress._socket.sent.clear()
    egress.carry_out([(each, b"route" if isinstance(each, Send) else None) for each in effects], 1.0, 1.0)
    return egress._socket.sent


def test_a_landing_is_on_disk_before_anything_that_follows_from_it_is_sent(egress):
    egress.kept = 3
    assert carry_out(egress, REDUCED, Send(1, BEAT_ACK), Send(1, Stamps(0.0, 0.0, 0.0))) == [0, 0], "nothing follows"
    assert carry_out(egress, REDUCED) == []
    assert carry_out(egress, Send(0, Ack(2)), Send(0, Ack(3))) == [2, 2]
    carry_out(egress, REDUCED)  # and what is noted at the end is written down when the hub closes


@pytest.mark.parametrize("answer", [Commit(1, 1), Lease(1, 0, 8), Ack(7)], ids=lambda each: type(each).__name__)
def test_whatever_is_decided_waits_for_all_that_was_noted_before(egress, answer):
    egress.kept = 1
    carry_out(egress, REDUCED)
    assert carry_out(egress, Send(1, answer)) == [1]


def test_another_record_takes_the_landings_with_it(egress):
    egress.kept = 2
    carry_out(egress, REDUCED)
    assert carry_out(egress, LEASED, Send(1, Stamps(0.0, 0.0, 0.0))) == [2]
