"""The replica that evaluates while training is killed under way; the run then stops early, by what others find."""

from __future__ import annotations

import json
import os
import signal

import pytest
from safetensors.torch import load_file

from tests.faults.fleet import TINY, Fleet
from tests.support import await_no_process_of
from tsugi_kpool.core.records import EvaluationGiven, Left

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

WORDS = (
    *TINY, "topology.replicas=3", "topology.max_restarts=0", "train.max_steps=4000", "train.epochs=999",
    "train.lr=0.5", "train.scheduler=constant", "fault.step_s=[0:0.05,1:0.1,2:0.3]",
    "evaluate.every=10", "evaluate.batch=1", "train.stop_early.patience=3", "train.checkpoint.best=true",
)  # fmt: skip


def test_another_evaluates_when_the_evaluator_dies_and_the_run_stops_at_its_best(tmp_path):
    fleet = Fleet(tmp_path, WORDS)
    try:
        fleet.await_true(lambda: fleet.told("evaluating", replica=2), "the slowest to evaluate")
        rounds = len(fleet.told("committed"))
        (joined,) = fleet.told("joined", replica=2)
        os.kill(joined["pid"], signal.SIGKILL)
        fleet.await_true(lambda: fleet.told("left", replica=2), "its death to be known")
        fleet.await_true(lambda: fleet.told("evaluating", replica=1), "another to evaluate")
        code, said = fleet.end()
    finally:
        fleet.stop()
    assert code == 0, said
    assert len(fleet.told("committed")) > rounds + 3, "the others' rounds went on"
    assert [each.replica for each in fleet.records() if isinstance(each, Left) and each.reason] == [2]
    after = [each for each in fleet.records() if isinstance(each, EvaluationGiven)]
    assert after[-1].replica == 1
    summary = json.loads(fleet.paths.summary.read_text())
    assert (summary["outcome"], summary["stopped_early"]) == ("finished", True)
    assert summary["samples"] < summary["samples_total"]
    losses = {each["version"]: each["loss"] for each in summary["evaluations"]}
    best = min(losses, key=lambda version: (losses[version], version))
    assert fleet.told("stopped_early", version=best)
    assert summary["evaluation"]["trained"]["loss"] > 0, "the result was measured"
    # The one that died has taken its share of the last evaluation with it: the rest may be the easier part.
    assert summary["best"]["loss"] == pytest.approx(losses[best])
    checkpoint = fleet.paths.checkpoints / summary["best"]["checkpoint"]
    anchor = load_file(checkpoint / "anchors.safetensors")["anchor"]
    adapter = load_file(fleet.paths.adapter / "adapter_model.safetensors")
    assert sum(float(each.double().sum()) for each in adapter.values()) == pytest.approx(
        float(anchor.double().sum()), rel=1e-6, abs=1e-6
    )
    assert "stopped early" in said
    await_no_process_of(fleet.paths.root)
