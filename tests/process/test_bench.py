"""`tsugi bench` as a user runs it: real processes of two methods, a report at the end, and going on after Ctrl-C."""

from __future__ import annotations

import json
import signal
import time

import pytest

from tests.process.test_finetune import TINY, WAIT_S, start, tsugi
from tests.support import await_no_process_of

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

BENCH = [*TINY, "bench.scenario=straggler4x", "bench.methods=[ddp,kpool]", "bench.seeds=[0]", "bench.lr_scales=[1]"]
BENCH += ["bench.steps=16", "bench.points=3", "bench.device_step_s=0.02", "topology.replicas=2"]


def test_two_methods_are_compared_and_finished_runs_outlive_ctrl_c(tmp_path):
    process = start("bench", *BENCH, "--plain", cwd=tmp_path)
    folder = tmp_path / "runs" / "latest-bench"
    deadline_s = time.monotonic() + WAIT_S
    while not list(folder.glob("runs/ddp-*/measured.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, wrong = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130, wrong
    assert "finished runs are kept" in said
    await_no_process_of(folder)
    kept = next(folder.glob("runs/ddp-*/measured.json"))
    when = kept.stat().st_mtime_ns

    result = tsugi("bench", "resume=last", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found == json.loads((folder / "bench.json").read_text())
    assert kept.stat().st_mtime_ns == when, "what was finished is not run again"
    assert [row["arm"] for row in found["report"]["rows"]] == ["ddp", "kpool"]
    for run in found["runs"]:
        assert sum(each["steps"] for each in run["replicas"]) == 16
        assert run["curve"][0]["tokens"] == 0
        assert run["curve"][-1]["loss"] < run["curve"][0]["loss"]
        assert run["sent_bytes"] > 0
    first, second = (run["curve"] for run in found["runs"])
    assert first[0]["loss"] == pytest.approx(second[0]["loss"], abs=1e-5), "both begin with the same model"
    assert first[-1]["tokens"] == second[-1]["tokens"], "on the same samples"
    assert all((folder / name).stat().st_size > 0 for name in ("bench.html", "bench.md"))
