"""What members pass on to the exchange: made of the hub's secret, and of all that an order says."""

from __future__ import annotations

import pytest

from tsugi_kpool.core.hub.outgoing import Frames
from tsugi_kpool.core.hub.tickets import TICKET_CHARS, Tickets
from tsugi_kpool.core.messages import Fire, Generation, decode

TICKETS = Tickets("a run", "a secret")
FIRE = Fire(3, 5, (0, 2), (0, 1), "count", 4, shared=2)


def test_orders_carry_their_tickets_and_those_of_a_run_without_an_exchange_none() -> None:
    opened = Generation(3, (0, 1), 4, newcomers=(1,), donor=0)
    sent = [decode(Frames(TICKETS).of(each)) for each in (FIRE, opened)]
    assert [each.ticket for each in sent] == [TICKETS.of_round(3, 5, 4, (0, 2), (0, 1), 2), TICKETS.of_donor(3, 0)]
    assert sent[0].members == (), "members know them; the ticket is of them all the same"
    assert {len(each.ticket) for each in sent} == {TICKET_CHARS}
    assert [decode(Frames().of(each)).ticket for each in (FIRE, opened)] == ["", ""]


@pytest.mark.parametrize(
    "other",
    [
        TICKETS.of_round(4, 5, 4, (0, 2), (0, 1), 2),
        TICKETS.of_round(3, 6, 4, (0, 2), (0, 1), 2),
        TICKETS.of_round(3, 5, 5, (0, 2), (0, 1), 2),
        TICKETS.of_round(3, 5, 4, (0,), (2, 0, 1), 2),
        TICKETS.of_round(3, 5, 4, (0, 2), (0, 1), 4),
        Tickets("another", "a secret").of_round(3, 5, 4, (0, 2), (0, 1), 2),
        Tickets("a run", "another").of_round(3, 5, 4, (0, 2), (0, 1), 2),
        TICKETS.of_donor(3, 5),
    ],
)
def test_no_two_orders_have_one_ticket(other: str) -> None:
    assert not TICKETS.is_(other, TICKETS.of_round(3, 5, 4, (0, 2), (0, 1), 2))
