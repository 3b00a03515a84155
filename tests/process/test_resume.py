"""Stopped by a scheduler, killed, resumed, on more and fewer replicas: every sample counts once, repeats are told."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.process.test_finetune import WAIT_S, events, start, tsugi
from tests.runs import QUIET
from tests.support import await_no_process_of, await_true, end_with, processes_of, whole_lines
from tsugi_cli.record.resumed import resumed_of
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.checkpoints import Store
from tsugi_kpool.core.checkpoint import Manifest
from tsugi_kpool.core.hub import ranges
from tsugi_kpool.core.journal import parse
from tsugi_kpool.core.records import RoundCommitted, RoundReduced

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

STEPS = 200
SETTINGS = [*QUIET, f"train.max_steps={STEPS}", "topology.min_replicas=1", "evaluate.examples=0"]


def newest(paths: RunPaths) -> Manifest:
    found = Store(paths.checkpoints).newest()
    assert found.newest is not None
    assert found.skipped == ()
    return found.newest.manifest


def samples_of(summary: dict) -> int:
    """Trained on in this run alone, by its replicas' own counts."""
    return sum(row["samples"] for row in summary["replicas"])


def begun(cwd: Path, *words: str, rounds: int = 4) -> tuple:
    """A run that has committed so many rounds."""
    before = (cwd / "runs" / "latest").resolve()
    process = start("finetune", *words, cwd=cwd)

    def committed() -> list[dict]:
        run = (cwd / "runs" / "latest").resolve()
        return [] if run == before else [each for each in events(run) if each["event"] == "committed"]

    await_true(lambda: len(committed()) >= rounds or process.poll() is not None, "rounds", WAIT_S)
    assert process.poll() is None, process.communicate()
    return process, RunPaths((cwd / "runs" / "latest").resolve())


def check_rounds(paths: RunPaths) -> None:
    """One digest for each version, on all members."""
    records = [entry.record for entry in parse(paths.journal.read_bytes()).entries]
    digests: dict[int, set[str]] = {}
    for each in records:
        if isinstance(each, RoundReduced):
            digests.setdefault(each.reduced.round, set()).add(each.reduced.digest)
    commits = [each for each in records if isinstance(each, RoundCommitted)]
    assert [each.version for each in commits] == list(range(1, len(commits) + 1))
    assert all(digests[each.round] == {each.digest} for each in commits)


def test_a_run_is_preempted_twice_and_ends_on_other_numbers_of_replicas(tmp_path):
    """2 replicas, then 3, then 1: nothing is trained twice, and nothing is left out."""
    slow = "fault.slow=[0:8.0,1:8.0]"
    process, first = begun(tmp_path, *SETTINGS, slow)
    end_with(signal.SIGTERM, *processes_of(first.root))  # as Slurm does: every process of the job gets it
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 143, out + err
    await_no_process_of(first.root)
    at_first = newest(first)
    assert at_first.clean
    assert at_first.parts == [0, 1]

    process, second = begun(tmp_path, "resume=last", "topology.replicas=3", "fault.slow=[0:8.0,1:8.0,2:8.0]")
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 143, out + err
    assert f"resuming {first.root}" in out
    assert "0 samples are trained on again" in out
    assert "replica 2: it begins with that of replica 0" in out
    at_second = newest(second)
    assert at_second.clean
    assert at_second.parts == [0, 1, 2]
    assert at_second.version > at_first.version

    result = tsugi("finetune", f"resume={second.root}", "topology.replicas=1", "fault.slow=[]", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    third = RunPaths((tmp_path / "runs" / "latest").resolve())
    at_third = newest(third)
    assert at_third.done == ((0, 2 * STEPS),)
    summaries = [json.loads(each.summary.read_text()) for each in (first, second, third)]
    assert sum(samples_of(each) for each in summaries) == 2 * STEPS, "every sample was trained on once"
    assert [each["samples"] for each in summaries] == [at_first.samples, at_second.samples, 2 * STEPS]
    assert summaries[2]["tokens"] == at_third.tokens
    assert [each["resumed"] and each["resumed"]["parent"] for each in summaries] == [
        None,
        str(first.root),
        str(second.root),
    ]
    assert {"base", "trained"} == set(summaries[2]["evaluation"])
    held: list[tuple[int, int]] = []
    for start_, stop in at_second.done:
        ranges.add(held, start_, stop)
    for start_, stop in at_first.done:
        ranges.remove(held, start_, stop)
    assert ranges.count(held) == at_second.samples - at_first.samples, "what was done stays done"
    for each in (first, second, third):
        check_rounds(each)
    assert tsugi("finetune", "resume=last", cwd=tmp_path).returncode == 2, "nothing is left to train on"


def test_a_fleet_that_is_killed_goes_on_from_its_newest_periodic_checkpoint(tmp_path):
    words = [*SETTINGS, "train.checkpoint.every_s=0.3", "kpool.k=8", "fault.slow=[0:8.0,1:8.0]"]
    process, first = begun(tmp_path, *words)
    await_true(lambda: any(each["event"] == "checkpoint" for each in events(first.root)), "a checkpoint", WAIT_S)
    await_true(lambda: len(list(first.checkpoints.glob("v*"))) > 1, "another one", WAIT_S)
    end_with(signal.SIGKILL, process.pid, *processes_of(first.root))
    process.communicate(timeout=WAIT_S)
    saved = newest(first)
    assert 0 < saved.samples < 2 * STEPS

    result = tsugi("finetune", "resume=last", "fault.slow=[]", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    second = RunPaths((tmp_path / "runs" / "latest").resolve())
    summary = json.loads(second.summary.read_text())
    resumed = resumed_of(second)
    assert resumed is not None
    assert resumed.parent == first.root
    assert resumed.manifest.done == saved.done or resumed.manifest.version > saved.version
    assert samples_of(summary) == 2 * STEPS - resumed.manifest.samples
    assert newest(second).done == ((0, 2 * STEPS),)
    last = {record["replica"]: record["samples"] for record in whole_lines(first.metrics)}
    # A checkpoint may know more than the last lines of metrics, which were not written any more.
    known = max(sum(last.values()) - resumed.manifest.samples, resumed.manifest.repeats)
    assert summary["resumed"]["repeats"] == known
    check_rounds(second)


def test_a_replica_of_two_workers_under_fsdp2_is_the_undisturbed_one_bit_for_bit(tmp_path):
    """Their moments lie in shards, and are put together for the checkpoint."""
    words = [*QUIET, "topology.replicas=1", "topology.min_replicas=1", "topology.workers=2", "topology.inside=fsdp2"]
    words += ["train.max_steps=40", "fault.slow=[0:4.0]"]
    undisturbed = tsugi("finetune", *words, f"runs_dir={tmp_path / 'other'}", "fault.slow=[]", cwd=tmp_path)
    assert undisturbed.returncode == 0, undisturbed.stderr
    process, first = begun(tmp_path, *words, rounds=1)
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 143, out + err
    assert 0 < newest(first).samples < 80
    result = tsugi("finetune", "resume=last", "fault.slow=[]", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    file = Path("latest") / "adapter" / "adapter_model.safetensors"
    assert (tmp_path / "runs" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()
