"""Who comes and goes between two rounds of an exchange: one generation for all of them, and rounds all the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.test_ahead import ALL, Table
from tsugi_kpool.core.effects import FleetStage, Send
from tsugi_kpool.core.hub.joining import FORM_S
from tsugi_kpool.core.hub.quarantine import expel
from tsugi_kpool.core.messages import Fire, Generation, Hello, Reduced, encode
from tsugi_kpool.core.replica.orders import Limits, impossible


def tick(table: Table, after_s: float = 0.05) -> None:
    table.now_s += after_s
    table.effects += table.hub.tick(table.now_s)


def voted(table: Table) -> None:
    """Round 1 is committed, all have voted, the next one waits for beats; the first generation opened long ago."""
    tick(table, 2 * FORM_S)
    for replica in ALL:
        table.vote(replica, 1)
    assert table.hub.rounds.in_flight is None
    table.effects.clear()


def generations(table: Table) -> list[tuple[int, tuple[int, ...]]]:
    return sorted({(each.generation, each.members) for each in table.orders(Generation)})


def fired(table: Table) -> list[tuple[int, tuple[int, ...]]]:
    return sorted({(each.round, each.members) for each in table.orders(Fire)})


def come(table: Table, replica: int) -> None:
    table.hear(Hello(0, replica, f"again{replica}", "host", 1, "c0ffee", "layout"))


def test_for_several_who_leave_between_two_rounds_one_generation_opens() -> None:
    table = Table()
    voted(table)
    for replica in (3, 1):
        table.effects += table.hub.leave({replica: "killed"}, table.now_s)
    assert generations(table) == []
    assert table.hub.present == (0, 2)
    tick(table)
    assert generations(table) == [(2, (0, 2))]
    for replica in (0, 2):
        table.beat(replica, 1, generation=2, joined=1)
    assert fired(table) == [(2, (0, 2))]


def test_a_newcomer_that_dies_before_it_is_in_any_generation_opens_none() -> None:
    table = Table()
    voted(table)
    table.effects += table.hub.leave({3: "killed"}, table.now_s)
    tick(table)
    come(table, 3)
    table.effects += table.hub.leave({3: "killed"}, table.now_s)
    for replica in (0, 1, 2):
        table.beat(replica, 1, generation=2, joined=1)
    assert fired(table) == [(2, (0, 1, 2))]
    tick(table, 2 * FORM_S)
    assert generations(table) == [(2, (0, 1, 2))]


def test_a_hub_that_goes_on_from_the_journal_opens_the_generation_that_was_due() -> None:
    table = Table()
    tick(table, 2 * FORM_S)
    for replica in ALL:
        table.vote(replica, 1)
    table.effects += table.hub.leave({3: "killed"}, table.now_s)
    again = table.again()
    assert again.present == (0, 1, 2)
    told = [each.message for each in again.tick(table.now_s + 2 * FORM_S) if hasattr(each, "message")]
    assert {each.members for each in told if isinstance(each, Generation)} == {(0, 1, 2)}


def test_what_one_held_who_leaves_between_two_rounds_is_handed_out_again_at_once() -> None:
    table = Table()
    voted(table)
    held = table.hub.leases.held(3)
    durable, left = table.hub.leases.settled(3), table.hub.leases.left
    table.effects += table.hub.leave({3: "killed"}, table.now_s)
    assert table.hub.leases.left == left + held - durable


def test_while_members_act_on_a_generation_the_next_one_waits_and_not_for_long() -> None:
    table = Table()
    voted(table)
    table.effects += table.hub.leave({3: "killed"}, table.now_s)
    tick(table)
    table.beat(0, 1, generation=2, joined=1)
    table.effects += table.hub.leave({1: "killed"}, table.now_s)
    tick(table)
    assert [number for number, _ in generations(table)] == [2], "replica 2 has not shown it yet"
    tick(table, FORM_S + 0.1)
    assert generations(table)[-1] == (3, (0, 2)), "it need not be alive"


def test_who_comes_before_the_first_round_of_a_generation_waits_for_that_round() -> None:
    """Where somebody comes every second, each would have put off the round again."""
    table = Table()
    voted(table)
    table.effects += table.hub.leave({3: "killed"}, table.now_s)
    tick(table)
    come(table, 3)
    for replica in (0, 1, 2):
        table.beat(replica, 1, generation=2, joined=1)
    assert fired(table) == [(2, (0, 1, 2))]
    tick(table)
    assert [number for number, _ in generations(table)] == [2], "not before that round is decided"


def test_who_comes_when_no_round_is_due_does_not_wait_for_one() -> None:
    table = Table()
    voted(table)
    table.effects += table.hub.leave({3: "killed"}, table.now_s)
    tick(table)
    come(table, 3)
    for replica in (0, 1, 2):
        table.beat(replica, 1, generation=2, joined=1, pooled=(0,) * 4)
    assert fired(table) == []
    tick(table)
    assert generations(table)[-1] == (3, (0, 1, 2, 3))


@pytest.mark.parametrize("leaves", [0, 3])
def test_a_generation_whose_donor_or_newcomer_has_left_is_not_said_again(leaves: int) -> None:
    """Nobody would obey it: an order that cannot be."""
    table = Table()
    voted(table)
    table.effects += table.hub.leave({3: "killed"}, table.now_s)
    tick(table)
    come(table, 3)
    tick(table, 2 * FORM_S)
    (order,) = {each.generation: each for each in table.orders(Generation) if each.newcomers}.values()
    assert (order.members, order.newcomers, order.donor) == (ALL, (3,), 0)
    table.effects += table.hub.leave({leaves: "killed"}, table.now_s)
    table.now_s += 1.5
    for replica in (1, 2):
        table.beat(replica, 1, generation=2, joined=1)
    tick(table, FORM_S)
    told = [each for each in table.effects if isinstance(each, Send) and isinstance(each.message, Generation)]
    assert [impossible(each.message, each.replica, Limits(4, 4), begun=True) for each in told] == [None] * len(told)
    assert generations(table)[-1] == (4, tuple(each for each in ALL if each != leaves))


def test_a_run_does_not_end_without_one_who_has_come_and_was_handed_the_last_data() -> None:
    table = Table()
    voted(table)
    table.hub.leases.closed = True  # all is handed out
    table.effects += table.hub.leave({3: "killed"}, table.now_s)
    tick(table)
    come(table, 3)
    for replica in (0, 1, 2):
        table.beat(replica, 1, generation=2, joined=1, drained=True, pooled=(0,) * 4)
    assert table.hub.stage is FleetStage.TRAINING
    tick(table)
    assert generations(table)[-1] == (3, (0, 1, 2, 3))


def test_a_run_below_its_quorum_takes_in_who_comes_back() -> None:
    table = Table()
    table.hub.plan = replace(table.plan, min_replicas=3, quorum_timeout_s=60.0)
    voted(table)
    table.effects += table.hub.leave({2: "killed", 3: "killed"}, table.now_s)
    tick(table)
    for replica in (0, 1):
        table.beat(replica, 1, generation=2, joined=1)
    assert fired(table) == []
    come(table, 3)
    tick(table)
    assert generations(table)[-1] == (3, (0, 1, 3))
    assert table.hub.stage is FleetStage.TRAINING


def test_one_whose_numbers_cannot_be_is_out_of_the_fleet_at_once() -> None:
    table = Table()
    voted(table)
    table.effects += expel(table.hub, {3: "no numbers"}, table.now_s)
    assert generations(table) == [(2, (0, 1, 2))]


def test_when_all_leave_between_two_rounds_the_run_ends_with_the_reason() -> None:
    table = Table()
    voted(table)
    table.effects += table.hub.leave(dict.fromkeys(ALL, "killed"), table.now_s)
    assert table.hub.stage is FleetStage.FAILED
    assert "every replica has gone" in (table.hub.failure or "")


def test_a_generation_that_is_said_again_is_the_same_message() -> None:
    """It names all members: to a thousand of them it is one frame."""
    table = Table()
    voted(table)
    table.effects += table.hub.leave({3: "killed"}, table.now_s)
    tick(table)
    for _ in range(2):
        table.now_s += 1.5
        for replica in (0, 1, 2):
            table.beat(replica, 1)
    orders = table.orders(Generation)
    assert len(orders) >= 9
    assert len({id(each) for each in orders}) == 1


def test_whose_parts_are_in_a_round_of_ten_thousand_fits_into_a_frame() -> None:
    members = tuple(range(10_000))
    told = Reduced(
        9, 0, "0" * 32, 7, 2**31, "0" * 64, 30.0, 2**31, (2**24,) * len(members), 1.0, 1.0, counted=members,
        durables=(60_000,) * len(members), told="0" * 64, receipt="0" * 64,
    )  # fmt: skip
    assert len(encode(told)) < 2**17
