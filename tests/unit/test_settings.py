"""What KPool refuses, beyond what the command line's tests cover."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest

from tests.support import kpool
from tsugi_cli.config.schema import leaf_types
from tsugi_cli.config.spec import RunSpec
from tsugi_kpool.core.replica.ledger import ContributionLedger
from tsugi_kpool.core.settings import KPool, Level, Mode, Payload, Reduce, Routing, SelectAt, Trigger


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


def test_two_bits_of_which_nothing_comes_later_are_told():
    (note,) = kpool(payload=Payload.INT2, error_feedback=False).notes()
    assert "kpool.error_feedback=false" in note
    assert kpool(payload=Payload.INT2).notes() == kpool(payload=Payload.INT4, error_feedback=False).notes() == []


def test_discarded_weight_is_no_longer_buffered_and_has_a_reason():
    ledger = ContributionLedger(2)
    ledger.collect(10)
    ledger.collect(5)
    ledger.discard(1, 10, 1, "stale")
    assert (ledger.buffered(0), ledger.buffered(1)) == (15, 5)
    assert ledger.steps == [2, 1]
    assert (ledger.discarded, ledger.discarded_by) == ([0, 10], {"stale": 10})


def test_the_docs_know_every_setting_and_every_value():
    page = (Path(__file__).parent.parent.parent / "docs" / "settings.md").read_text(encoding="utf-8")
    words = {field.name for field in fields(KPool)}
    named = {"mode": Mode, "select_at": SelectAt, "routing": Routing, "trigger": Trigger, "payload": Payload}
    named["reduce"] = Reduce
    words |= {f"{name}={value}" for name, values in named.items() for value in values}
    words |= {f"{name}={value}" for name in ("error_feedback", "overlap", "size_work") for value in ("true", "false")}
    words |= {"k=auto", "eps=auto"}
    assert {word for word in words if f"`{word}" not in page} == set()


def marks(section: type, prefix: str = "") -> Iterator[tuple[str, list[Level]]]:
    """Each setting's dotted key, with the levels that its definition names."""
    for name, hint in get_type_hints(section, include_extras=True).items():
        if is_dataclass(hint):
            yield from marks(hint, f"{prefix}{name}.")
        else:
            said = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
            yield f"{prefix}{name}", [each for each in said if isinstance(each, Level)]


def test_every_setting_is_marked_basic_or_advanced_and_a_person_can_read_the_basic_ones():
    found = dict(marks(RunSpec))
    assert list(found) == list(leaf_types())
    assert [key for key, levels in found.items() if len(levels) != 1] == []
    basic = {key for key, (level,) in found.items() if level is Level.BASIC}
    assert 20 <= len(basic) <= 30
    assert {"model.path", "data.path", "topology.replicas", "kpool.k", "train.lr"} <= basic
    assert not any(key.startswith("fault.") for key in basic)
