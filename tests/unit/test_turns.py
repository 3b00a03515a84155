"""How many members get an exchange's result at a time: fewer where the hub's link is what is short."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from tsugi_kpool.exchange.turns import AGAIN_AFTER, FIRST_PATIENCE_S, Turns

SIZE, MEMBERS = 1_200_000, 8


def settled(seconds: Callable[[int], float], rounds: int = 12, members: int = MEMBERS) -> list[int]:
    """Members at a time in each round, where handing out to so many at a time takes this long."""
    turns, found = Turns(), []
    for _ in range(rounds):
        turn = turns.next(members, SIZE)
        found.append(turn.at_once)
        turns.took(SIZE, seconds(turn.at_once))
    return found


def test_where_the_hubs_link_is_short_one_member_after_the_other_gets_it() -> None:
    assert settled(lambda at_once: 3.8) == [8, 4, 2, *[1] * 9]


def test_one_after_the_other_goes_on_where_each_connection_takes_a_while_to_be_fast_again() -> None:
    """Measured with four members and a busy machine: rounds are shorter although handing out takes a third longer."""
    assert settled(lambda at_once: {4: 1.53, 2: 2.02, 1: 2.1}[at_once], members=4) == [4, 2, *[1] * 10]


def test_where_the_members_links_are_short_all_get_it_at_once() -> None:
    found = settled(lambda at_once: 0.5 * MEMBERS / at_once, 200)
    assert found[:2] == [8, 4]
    assert set(found[2:]) == {8, 4}
    assert found.count(4) < 10


def test_of_a_link_three_times_as_fast_as_theirs_as_many_get_it_as_fill_it() -> None:
    assert settled(lambda at_once: max(0.5 * MEMBERS / at_once, 1.3))[:6] == [8, 4, 2, 4, 4, 4]


def test_where_all_have_it_at_once_nothing_is_tried() -> None:
    assert settled(lambda at_once: 0.03) == [8] * 12


@pytest.mark.parametrize("members", [1, 2, 3])
def test_few_members(members: int) -> None:
    assert settled(lambda at_once: 1.0, members=members)[-1] == 1


def test_what_was_slower_is_tried_again_after_ever_more_rounds() -> None:
    found = settled(lambda at_once: 0.5 * MEMBERS / at_once, 4 * AGAIN_AFTER)
    tried = [number for number, at_once in enumerate(found) if at_once == 4]
    apart = [after - before for before, after in itertools.pairwise(tried)]
    assert apart[0] < 5
    assert apart == sorted(apart)
    assert apart[-1] >= AGAIN_AFTER


def test_one_round_that_something_else_held_up_does_not_keep_all_at_once_for_long() -> None:
    held_up = iter([3.8, 5.5, *[3.8] * 20])
    assert settled(lambda at_once: next(held_up)) == [8, 4, 8, 8, 8, 4, 2, *[1] * 5]


def test_when_the_links_have_changed_it_begins_anew() -> None:
    slower = iter([3.8] * 6 + [9.0] * 20)
    found = settled(lambda at_once: next(slower), 12)
    assert found[5] == 1
    assert MEMBERS in found[8:10]


def test_one_slow_round_among_others_changes_nothing() -> None:
    slower = iter([3.8] * 6 + [9.0] + [3.8] * 20)
    assert settled(lambda at_once: next(slower), 20)[3:] == [1] * 17


def test_another_number_of_members_begins_anew_and_the_first_round_knows_nothing() -> None:
    turns = Turns()
    for _ in range(5):
        turns.next(MEMBERS, SIZE)
        turns.took(SIZE, 3.8)
    turn = turns.next(MEMBERS + 1, SIZE)
    assert (turn.at_once, turn.patience_s) == (MEMBERS + 1, FIRST_PATIENCE_S)


def test_nobody_is_waited_for_much_longer_than_a_result_takes() -> None:
    turns = Turns()
    for _ in range(6):
        turn = turns.next(MEMBERS, SIZE)
        turns.took(SIZE, 4.0)
    assert turn.at_once == 1
    assert 0.5 < turn.patience_s < 4.0
