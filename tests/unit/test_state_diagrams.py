"""The pictures of docs/architecture.md: every arrow is what the code does, and what the code does has an arrow."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from tests.support import hub_plan
from tsugi_kpool import errors
from tsugi_kpool.core import records
from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.hub.changes import apply
from tsugi_kpool.core.hub.state import HubState
from tsugi_kpool.core.messages import Abort, Ack, Commit, Fire, Generation, Hello, Reduced, Refused
from tsugi_kpool.core.replica.stage import Action, Stage, react
from tsugi_kpool.core.rounds.trigger import Reason
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.link import Identity, Link

PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
OWN = 3
"""The version that a replica stands on."""
Arrows = set[tuple[str, str, str]]


def drawn(name: str) -> Arrows:
    """(from, to, label) of every arrow of a picture but the first."""
    picture = re.search(rf"<!-- states: {name} -->\n```mermaid\n(.*?)```", PAGE, re.DOTALL)
    assert picture is not None
    return set(re.findall(r"^    (\w+) --> (\w+): (.*)$", picture[1], re.MULTILINE))


# --- a round on one replica ----------------------------------------------------------------------------------

ORDERS = {
    "a newer Generation": lambda version: Generation(2, (0, 1), version),
    "a newer Fire": lambda version: Fire(1, 5, (0,), (0, 1), "count", version),
    "Commit of this round": lambda _: Commit(1, 4),
    "Abort of this round": lambda _: Abort(1, 4, "x"),
    "an older Generation": lambda version: Generation(1, (0, 1), version),
    "the same Fire": lambda version: Fire(1, 4, (0,), (0, 1), "count", version),
    "Commit of another round": lambda _: Commit(1, 3),
    "Abort of another round": lambda _: Abort(1, 5, "x"),
}


def listed() -> list[tuple[list[str], str, str, str]]:
    """(stages, order, version, action) of every row of the table."""
    table = re.search(r"<!-- reactions -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)
    assert table is not None
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table[1].splitlines()[2:]]
    return [(stages.split(", "), order, version, action) for stages, order, version, action in rows]


def said(stage: Stage, order: str, version: int) -> str:
    """What the table says of an order; the exact version stands before "any other"."""
    exact = "above own + 1" if version > OWN + 1 else {OWN: "own", OWN + 1: "own + 1"}.get(version, "")
    for wanted in (exact, "any", "any other"):
        for stages, named, of_version, action in listed():
            if stage.name in stages and named == order and of_version == wanted:
                return action
    return Action.IGNORE


@pytest.mark.parametrize(("stage", "order"), list(product(Stage, ORDERS)))
def test_reactions_are_those_of_the_table(stage, order):
    for version in range(OWN - 1, OWN + 4):
        assert react(stage, 1, 4, OWN, ORDERS[order](version)) == said(stage, order, version)


def led_to(action: Action) -> Stage:
    return Stage.IN_FLIGHT if action.starts else Stage.IDLE


def test_orders_move_a_replica_as_drawn():
    """Without a group there is nobody to gather from, and in a collective the aggregator reads no orders."""
    found: Arrows = set()
    for stage, (name, order), version in product((Stage.IDLE, Stage.REDUCED), ORDERS.items(), (OWN, OWN + 1)):
        action = react(stage, 1, 4, OWN, order(version))
        if action is not Action.IGNORE:
            found.add((stage.name, led_to(action).name, re.sub("^a newer | of this round$", "", name)))
    assert react(Stage.OUTSIDE, 1, 4, OWN, ORDERS["a newer Generation"](OWN)) is Action.FORM
    found.add(("OUTSIDE", "IDLE", "Generation"))
    collective = {
        ("IN_FLIGHT", "REDUCED", "the collective ends"),
        ("IN_FLIGHT", "OUTSIDE", "the collective breaks (Broken)"),
        ("IDLE", "OUTSIDE", "a member's connection closes (Broken)"),
    }
    assert drawn("stage") == found | collective
    assert {stage for arrow in drawn("stage") for stage in arrow[:2]} == {stage.name for stage in Stage}


# --- a round and a run on the hub ----------------------------------------------------------------------------


def reduced(replica: int) -> Reduced:
    return Reduced(1, replica, f"i{replica}", 1, 1, "d", 0.1, 8, (1, 1), 0.0, 0.0)


def state_after(*happened: records.AnyRecord) -> HubState:
    state = HubState(hub_plan(), 0.0)
    for replica in (0, 1):
        apply(state, records.Joined(Hello(1, replica, f"i{replica}", "h", 1, "c", "l")), 0.0)
    for record in happened:
        apply(state, record, 0.0)
    return state


def round_of(state: HubState) -> str:
    if state.rounds.in_flight is None:
        return "NONE"
    return "COMPLETE" if state.rounds.complete else "IN_FLIGHT"


def fired(reason: Reason = Reason.COUNT) -> records.RoundFired:
    return records.RoundFired(Fire(1, 1, (0,), (0, 1), reason))


OPENED = records.GenerationOpened(1, (0, 1))
COMMITTED = records.RoundCommitted(1, 1, "d", (0,) * hub_plan().kpool.n)
FAILED = records.RunFailed("x", None)


def test_records_move_a_round_as_drawn():
    half = (OPENED, fired(), records.RoundReduced(reduced(0)))
    whole = (*half, records.RoundReduced(reduced(1)))
    assert [round_of(state_after(*each)) for each in ((OPENED,), half, whole)] == ["NONE", "IN_FLIGHT", "COMPLETE"]
    moves = [
        ((OPENED,), fired()),
        ((OPENED, fired()), records.RoundReduced(reduced(0))),
        (half, records.RoundReduced(reduced(1))),
        (whole, COMMITTED),
        *((before, record) for before in (half, whole) for record in (records.GenerationOpened(2, (0, 1)), FAILED)),
    ]
    found = {
        (round_of(state_after(*before)), round_of(state_after(*before, record)), type(record).__name__)
        for before, record in moves
    }
    assert found == drawn("round")


def test_records_move_a_run_as_drawn():
    final = fired(Reason.FINAL)
    named = {
        "GenerationOpened": OPENED,
        "RoundFired(final)": final,
        "Finished": records.Finished(),
        "Interrupted(over)": records.Interrupted(over=True),
        "RunFailed": FAILED,
    }
    before = {"GATHERING": (), "TRAINING": (OPENED,), "DRAINING": (OPENED, final)}
    for stage, happened in before.items():
        assert state_after(*happened).stage.name == stage
    for source, target, label in drawn("run"):
        assert state_after(*before[source], named[label]).stage.name == target
    assert state_after(OPENED, records.Interrupted()).stage is FleetStage.TRAINING
    assert {stage for arrow in drawn("run") for stage in arrow[:2]} == {stage.name for stage in FleetStage}


# --- the link of a replica -----------------------------------------------------------------------------------

HEARD = {
    "Refused": Refused("x"),
    "Refused(fenced)": Refused("x", fenced=True),
    "Refused(quarantined)": Refused("x", fenced=True, quarantined=True),
    "an order that cannot be": Generation(1, (), 0),
}
SILENT = "the hub is silent, or has ended"


@pytest.mark.parametrize(("source", "label"), list(product(("ASKED", "JOINED"), (*HEARD, SILENT))))
def test_a_link_fails_as_drawn(source, label):
    link = Link(RunKeys.generate(), Identity(1, "h", 1, "c", "l"), lambda _: None, 1.0, 1.0)
    if source == "JOINED":
        link.deliver(Ack(1))
    if label == SILENT:
        link.fail(errors.SidebandError("x"))
    else:
        link.deliver(HEARD[label])
    (target,) = {to for origin, to, named in drawn("link") if (origin, named) == (source, label)}
    with pytest.raises(getattr(errors, target)) as raised:
        link.next_order(0.0)
    assert type(raised.value) is getattr(errors, target)


def test_no_arrow_of_the_link_is_left_out():
    assert len(drawn("link")) == 2 * (len(HEARD) + 1) + 1
