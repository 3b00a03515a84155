"""Which adapters a round ships: what each policy does, and that none starves an adapter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import kpool
from tsugi_kpool.core.messages import AdapterFacts, Fire
from tsugi_kpool.core.rounds.selection import (
    MAX_AGE_TURNS,
    UNKNOWN,
    Selection,
    buffered_change,
    select_adapters,
)
from tsugi_kpool.core.settings import Routing


@given(n=st.integers(1, 12), data=st.data(), routing=st.sampled_from(Routing))
def test_routing_ships_k_adapters_and_starves_none(n, data, routing):
    k = data.draw(st.integers(1, n))
    scores = data.draw(st.lists(st.floats(0, 1e6) | st.just(UNKNOWN), min_size=n, max_size=n))
    shipped_in = [0] * n
    oldest = 0
    for round in range(1, 60):
        adapters = select_adapters(routing, k, shipped_in, round, scores)
        assert adapters == select_adapters(routing, k, list(shipped_in), round, scores), "a pure function"
        assert len(set(adapters)) == k
        assert list(adapters) == sorted(adapters)
        for adapter in adapters:
            oldest = max(oldest, round - shipped_in[adapter])
            shipped_in[adapter] = round
    turn = -(-n // k)
    assert oldest <= (turn if routing is Routing.ROUND_ROBIN else (MAX_AGE_TURNS + 1) * turn + 1)


def test_round_robin_takes_turns():
    shipped_in, seen = [0] * 8, []
    for round in range(1, 9):
        adapters = select_adapters(Routing.ROUND_ROBIN, 2, shipped_in, round)
        seen.append(adapters)
        for adapter in adapters:
            shipped_in[adapter] = round
    assert seen == [(0, 1), (2, 3), (4, 5), (6, 7)] * 2


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ([1.0, 4.0, 2.0, 3.0], (1, 3)),
        ([1.0, 1.0, 1.0, 1.0], (2, 3)),  # equal: the oldest
        ([9.0, 9.0, UNKNOWN, 1.0], (1, 2)),  # what is unknown goes first; of the two equal ones the older
    ],
)
def test_the_highest_scores_are_shipped(scores, chosen):
    assert select_adapters(Routing.LOSS_AWARE, 2, [9, 8, 7, 7], 10, scores=scores) == chosen


@pytest.mark.parametrize("routing", [each for each in Routing if each is not Routing.ROUND_ROBIN])
def test_the_maximum_age_comes_before_any_score(routing):
    """4 adapters, 2 a round: 2 turns of 2 rounds, so 8 rounds are the most that one may be left out."""
    assert select_adapters(routing, 2, [19, 19, 11, 18], 20, scores=[9.0, 9.0, 0.0, 9.0])[0] <= 2
    assert 2 in select_adapters(routing, 2, [19, 19, 11, 18], 20, scores=[9.0, 9.0, 0.0, 9.0])


def test_score_of_loss_aware_is_change_times_age():
    assert buffered_change([0.5, None, 2.0], [4, 1, 0], [7, 0, 3], 9) == [0.5 * 4 * 2, UNKNOWN, 0.0]


def run(selection: Selection, rounds: int, facts, pooled) -> list[tuple[int, ...]]:
    """Rounds one after the other; `facts` of an adapter, `pooled` of all when a round is committed."""
    chosen = []
    for round in range(1, rounds + 1):
        due = selection.due
        chosen.append(due)
        fire = Fire(1, round, due, (0, 1), "count")
        selection.committed(fire, [facts(adapter) for adapter in due], pooled)
    return chosen


def test_loss_aware_prefers_what_changes_most():
    """Adapter 3 changes five times as much for each step as the others: it is shipped more often."""
    selection = Selection(kpool(k=1, routing=Routing.LOSS_AWARE))
    chosen = run(selection, 60, lambda a: AdapterFacts(4, 20.0 if a == 3 else 4.0), [8, 8, 8, 8])
    counts = [sum(a in due for due in chosen) for a in range(4)]
    assert counts[3] > 1.5 * max(counts[:3])
    assert min(counts) > 6, "age brings the others in, too"


def test_loss_aware_reduces_to_round_robin_when_all_change_alike():
    loss_aware, turns = (
        run(Selection(kpool(k=2, n=8, routing=routing)), 24, lambda a: AdapterFacts(4, 1.0), [8] * 8)
        for routing in (Routing.LOSS_AWARE, Routing.ROUND_ROBIN)
    )
    assert loss_aware == turns


def test_what_a_round_has_shipped_is_not_counted_as_buffered():
    """Beats that are older than the commit still show it."""
    selection = Selection(kpool(k=2, routing=Routing.LOSS_AWARE))
    run(selection, 2, lambda a: AdapterFacts(6, 6.0), [6, 6, 6, 6])
    assert selection.due == (0, 1), "2 and 3 were shipped just now"


def test_a_landing_without_facts_is_enough_for_taking_turns():
    selection = Selection(kpool(k=2))
    selection.committed(Fire(1, 1, (0, 1), (0, 1), "count"), (), [0] * 4)
    assert selection.due == (2, 3)
