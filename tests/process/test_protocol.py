"""The scaled protocol of benchmarks/llama3_8b_lora through all its programs: both arms, records, verdict."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

HERE = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "llama3_8b_lora"
WAIT_S = 240


def program(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=WAIT_S, check=False)


@pytest.mark.nightly
def test_a_pair_runs_through_and_its_verdict_has_all_figures(tmp_path):
    """One pair: five would be too long for a test, and one says INCONCLUSIVE whatever this machine is busy with."""
    short = ["--pairs", "1", "--steps", "16", "--device-s", "0.02", "--out", str(tmp_path)]
    result = program(str(HERE / "run.py"), "--scaled", *short)
    assert result.returncode == 4, result.stdout + result.stderr
    sync, kpool = (json.loads((tmp_path / "seed0" / f"{arm}.json").read_text()) for arm in ("sync", "kpool"))
    assert (sync["failure"], kpool["failure"]) == (None, None)
    assert sync["equal"] == kpool["equal"]
    assert sync["equal"]["fault"]["step_s"] == ["0:0.02", "1:0.08"]
    assert (sync["samples"], sync["tokens"]) == (kpool["samples"], kpool["tokens"]), "the same work in both arms"
    for record in (sync, kpool):
        assert record["tokens_per_s"] > 0
        assert all(0 < loss < 6 for loss in (record["final_loss"], *record["checkpoints"]))
    *figures, reason, word = result.stdout.splitlines()[-5:]
    assert figures[0].startswith("seed0: ")
    assert "no bound from one pair" in figures[1]
    assert (reason, word) == ("1 whole pairs of 5 that are needed", "INCONCLUSIVE")
    assert program(str(HERE / "verdict.py"), str(tmp_path)).returncode == 4


def test_without_a_gpu_it_says_so_at_once():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = program(str(HERE / "run.py"), "--one-gpu")
    assert (result.returncode, result.stderr.startswith("there is no GPU here")) == (1, True)
