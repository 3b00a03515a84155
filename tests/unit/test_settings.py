"""What KPool refuses, beyond what the command line's tests cover."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from tests.support import kpool
from tsugi_kpool.core.replica.ledger import ContributionLedger
from tsugi_kpool.core.settings import KPool, Mode, Payload, Routing, SelectAt, Trigger


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_staleness": -1}, "kpool.max_staleness must not be negative, found -1"),
        ({"mode": Mode.GRADIENT, "n": 8, "k": 1, "max_staleness": 7}, "must be at least n / k = 8 in gradient mode"),
        ({"mode": Mode.GRADIENT, "n": 5, "k": 2, "max_staleness": 2}, "must be at least n / k = 3 in gradient mode"),
    ],
)
def test_cut_off_that_would_discard_healthy_gradients_is_refused(changes, words):
    (problem,) = kpool(**changes).problems()
    assert words in problem


@pytest.mark.parametrize(
    "changes", [{"mode": Mode.GRADIENT, "max_staleness": 2}, {"n": 8, "k": 1, "max_staleness": 0}]
)
def test_other_cut_offs_are_not(changes):
    assert kpool(**changes).problems() == []


def test_a_routing_that_may_starve_an_adapter_is_told_to_whom_late_gradients_matter():
    (note,) = kpool(mode=Mode.GRADIENT, routing=Routing.LOSS_AWARE).notes()
    assert "kpool.routing=loss_aware may leave an adapter out" in note
    assert kpool(mode=Mode.GRADIENT).notes() == kpool(routing=Routing.LOSS_AWARE).notes() == []


def test_discarded_weight_is_no_longer_buffered_and_has_a_reason():
    ledger = ContributionLedger(2)
    ledger.collect(10)
    ledger.collect(5)
    ledger.discard(1, 10, 1, "stale")
    assert (ledger.buffered(0), ledger.buffered(1)) == (15, 5)
    assert ledger.micro_steps == [2, 1]
    assert (ledger.discarded, ledger.discarded_by) == ([0, 10], {"stale": 10})


def test_the_docs_know_every_setting_and_every_value():
    page = (Path(__file__).parent.parent.parent / "docs" / "settings.md").read_text(encoding="utf-8")
    words = {field.name for field in fields(KPool)}
    named = {"mode": Mode, "select_at": SelectAt, "routing": Routing, "trigger": Trigger, "payload": Payload}
    words |= {f"{name}={value}" for name, values in named.items() for value in values}
    words |= {f"{name}={value}" for name in ("error_feedback", "overlap", "size_work") for value in ("true", "false")}
    words |= {"k=auto", "eps=auto"}
    assert {word for word in words if f"`{word}" not in page} == set()
