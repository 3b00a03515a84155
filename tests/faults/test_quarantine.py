"""Broken hardware in a real run: whose gradients are no numbers, or whose anchors differ, leaves by name."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from tests.faults.fleet import TINY, Fleet
from tests.support import await_no_process_of
from tsugi_kpool.checkpoints import Store
from tsugi_kpool.core.checkpoint import ANCHORS
from tsugi_kpool.core.records import GenerationOpened, Leased, Left
from tsugi_kpool.engine.state import ANCHOR

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

STEPS = 240
WORDS = (
    *TINY,
    "topology.replicas=4",
    f"train.max_steps={STEPS}",
    "train.lease_ahead_s=0",
    "kpool.trigger=count",
)
FAULTS = ("fault.slow=[0:4,1:4,2:4,3:4]", "fault.nan=['1:99@4']", "fault.flip=['2:1@40']")


def test_replicas_whose_numbers_cannot_be_are_quarantined_and_the_others_finish(tmp_path):
    fleet = Fleet(tmp_path, (*WORDS, *FAULTS))
    try:
        for replica in (1, 2):
            fleet.await_true(lambda gone=replica: fleet.told("left", replica=gone), f"replica {replica} to leave")
        states = {row.replica: row.state for row in fleet.status().replicas}
        assert states[1] == states[2] == "quarantined"
        code, said = fleet.end()
    finally:
        fleet.stop()
    assert code == 0, said
    left = {each.replica: each for each in fleet.records() if isinstance(each, Left) and each.quarantined}
    assert set(left) == {1, 2}
    assert "3 times in a row" in left[1].reason
    assert "differ from those of the other 2 replicas" in left[2].reason
    assert "replica 1 left: quarantined: 3 times in a row" in said
    assert "replica 2 left: quarantined: the anchors of round" in said
    assert fleet.told("restarted") == [], "nobody starts them again blindly"
    assert [each.members for each in fleet.records() if isinstance(each, GenerationOpened)][-1] == (0, 3)
    handed = [each.lease for each in fleet.records() if isinstance(each, Leased)]
    assert {position for lease in handed for position in range(lease.start, lease.stop)} == set(range(STEPS * 2))
    summary = json.loads(fleet.paths.summary.read_text())
    assert (summary["outcome"], summary["samples"]) == ("finished", STEPS * 2)
    await_no_process_of(fleet.paths.root)


def test_two_who_disagree_leave_the_adapter_of_the_newest_checkpoint(tmp_path):
    """Nobody knows who is right, so the memory of neither is written. There is a checkpoint after sixty steps."""
    words = (*TINY, "topology.replicas=2", f"train.max_steps={STEPS}", "train.checkpoint.every_s=0.3")
    fleet = Fleet(tmp_path, (*words, "kpool.k=8", "fault.slow=[0:4,1:4]", "fault.flip=['1:9@60']"))
    try:
        code, said = fleet.end()
    finally:
        fleet.stop()
    assert code == 6, said
    assert "gave different anchors" in said
    newest = Store(fleet.paths.checkpoints).newest().newest
    assert newest is not None
    summary = json.loads(fleet.paths.summary.read_text())
    assert (summary["outcome"], summary["adapter_of"]) == ("failed", newest.path.name)
    assert summary["adapter"] == str(fleet.paths.adapter)
    tensors = load_file(fleet.paths.adapter / "adapter_model.safetensors")
    total = sum(float(value.double().square().sum()) for value in tensors.values())
    anchors = load_file(newest.path / ANCHORS)[ANCHOR]
    assert total == pytest.approx(float(anchors.double().square().sum()), rel=1e-9), "these anchors, and no others"
