"""Broken hardware in a real run: whose gradients are no numbers, or whose anchors differ, leaves by name."""

from __future__ import annotations

import json

import pytest

from tests.faults.test_replicas import Run, begin  # noqa: F401  (a fixture)
from tsugi_kpool.core.records import EpochOpened, Left

pytestmark = [pytest.mark.process, pytest.mark.timeout(240)]

FAULTS = ("topology.replicas=4", "fault.nan=['1:99@4']", "fault.flip=['2:1@40']", "kpool.trigger=count")


def test_replicas_whose_numbers_cannot_be_are_quarantined_and_the_others_finish(begin):  # noqa: F811
    run: Run = begin(*FAULTS)
    run.await_event("left", replica=1)
    run.await_event("left", replica=2)
    states = {row.replica: row.state for row in run.status().replicas}
    assert states[1] == states[2] == "quarantined"
    code, said = run.end()
    assert code == 0, said
    left = {each.replica: each for each in run.journal(Left) if each.quarantined}
    assert set(left) == {1, 2}
    assert "3 times in a row" in left[1].reason
    assert "differ from those of the other 2 replicas" in left[2].reason
    assert "replica 1 left: quarantined: 3 times in a row" in said
    assert "replica 2 left: quarantined: the anchors of round" in said
    assert run.told("restarted") == [], "nobody starts them again blindly"
    assert run.journal(EpochOpened)[-1].members == (0, 3)
    assert json.loads(run.paths.summary.read_text())["outcome"] == "finished"
    run.check()
