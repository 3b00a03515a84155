"""The whole command under real torchrun: what a user gets, and what happens when things go wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import await_no_process_of, await_true, end_with, processes_of, whole_lines

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

TINY = ["model=tiny", "data.n_train=64", "data.n_eval=4", "data.n_test=4", "evaluate.max_new_tokens=4"]
TINY += ["train.micro_batch=2", "train.lr=2e-3"]
WAIT_S = 150


def tsugi(*arguments: str, cwd: Path, timeout_s: float = WAIT_S) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tsugi_cli.app", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False)


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tsugi_cli.app", *arguments]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def events(run: Path) -> list[dict]:
    return whole_lines(run / "events.jsonl")


def wait_for(run: Path, name: str, process: subprocess.Popen[str]) -> None:
    """Wait until an event has happened; the run must still be there."""
    deadline_s = time.monotonic() + WAIT_S
    while not any(event["event"] == name for event in events(run)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s, f"no {name} in time"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """One finished run, which several tests look at."""
    cwd = tmp_path_factory.mktemp("finished")
    result = tsugi("finetune", *TINY, "train.max_steps=24", "--json", cwd=cwd)
    assert result.returncode == 0, result.stderr
    (cwd / "told.jsonl").write_text(result.stdout)
    assert "finished" in result.stderr
    return cwd / "runs" / "latest"


@pytest.mark.fresh
def test_a_run_leaves_all_that_it_promises(finished):
    names = {path.name for path in finished.iterdir()}
    assert {
        "config.yaml",
        "config.sha256",
        "logs",
        "metrics.jsonl",
        "events.jsonl",
        "status.jsonl",
        "summary.json",
        "adapter",
    } <= names
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["outcome"] == "finished"
    assert summary["samples"] == summary["samples_total"] == 48
    assert set(summary["evaluation"]) == {"base", "trained"}
    assert summary["evaluation"]["trained"]["loss"] < summary["evaluation"]["base"]["loss"]
    assert len(summary["examples"]) > 0
    assert finished.is_symlink()
    assert {path.name for path in (finished / "logs").glob("*.log")} == {
        "replica0.worker0.log",
        "replica1.worker0.log",
    }


def test_events_tell_of_rounds_in_order(finished):
    happened = events(finished)
    committed = [event for event in happened if event["event"] == "committed"]
    fired = [event for event in happened if event["event"] == "fired"]
    assert [event["version"] for event in committed] == list(range(1, len(committed) + 1))
    assert [event["round"] for event in fired] == [event["round"] for event in committed]
    assert fired[-1]["reason"] == "final"
    assert fired[-1]["adapters"] == list(range(8))
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert {metric["replica"] for metric in metrics} == {0, 1}


def test_a_program_is_told_all_that_the_files_say(finished):
    told = [json.loads(line) for line in (finished.parent.parent / "told.jsonl").read_text().splitlines()]
    assert [each for each in told if each.get("event") == "committed"] == [
        event for event in events(finished) if event["event"] == "committed"
    ]
    assert any("status" in each for each in told)
    assert told[-1]["summary"] == json.loads((finished / "summary.json").read_text())


def test_every_token_that_was_trained_is_in_the_committed_weights(finished):
    """docs/design.md rule 2 for the whole fleet: each adapter's committed weight is all that was produced."""
    summary = json.loads((finished / "summary.json").read_text())
    committed = sum(sum(event["weights"]) for event in events(finished) if event["event"] == "committed")
    assert committed == 8 * summary["tokens"]


def test_the_page_about_files_has_every_field_and_its_program_runs(finished):
    page = (Path(__file__).parents[2] / "docs" / "files.md").read_text()
    summary = json.loads((finished / "summary.json").read_text())
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    fields = {*summary, *summary["replicas"][0], *metrics[0], *metrics[-1]}
    assert sorted(name for name in fields if f"`{name}`" not in page) == []
    program = page.split("```python\n")[1].split("```")[0].replace("runs/latest", str(finished))
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert result.returncode == 0, result.stderr


def test_config_on_disk_is_resolved_and_hashed(finished):
    import yaml

    from tsugi_cli.config.compose import build_spec, config_hash

    spec = build_spec(yaml.safe_load((finished / "config.yaml").read_text()))
    assert config_hash(spec) == (finished / "config.sha256").read_text().strip()
    assert spec.train.max_steps == 24


def test_adapter_loads_where_tsugi_is_not_installed(finished, tmp_path):
    """Plain PEFT in a process that cannot import tsugi; the file is the fleet's anchor, tensor by tensor."""
    summary = json.loads((finished / "summary.json").read_text())
    script = f"""
import sys
sys.modules["tsugi_cli"] = sys.modules["tsugi_kpool"] = None
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained({summary["model"]!r})
ids = torch.arange(30)[None]
before = base(ids).logits
model = PeftModel.from_pretrained(base, {str(finished / "adapter")!r})
print(float((model(ids).logits - before).abs().max()))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=WAIT_S, check=False, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) > 1e-4, "the adapter changes nothing"


def test_keys_are_private(finished):
    assert (finished / "sideband" / "keys.json").stat().st_mode & 0o077 == 0
    assert (finished / "sideband").stat().st_mode & 0o077 == 0


def test_status_of_a_finished_run_says_so(finished):
    result = tsugi("sideband", "status", "--run", str(finished), "--timeout", "0.5", cwd=finished)
    assert result.returncode == 0, result.stderr
    assert "the run has ended, and this is its last status" in result.stdout


def test_a_finished_run_can_be_seen_again(finished):
    result = tsugi("console", "--run", str(finished), cwd=finished)
    assert result.returncode == 0, result.stderr
    # By their times: the last checkpoint may be told after the last status.
    *_, last = (line for line in result.stdout.splitlines() if "/48 samples" in line)
    version = [event for event in events(finished) if event["event"] == "committed"][-1]["version"]
    assert last.lstrip().startswith("48/48 samples 100%  finished")
    assert f"round {version}" in last


@pytest.mark.fresh
def test_ctrl_c_keeps_what_is_finished_and_status_answers_before(tmp_path):
    """During the run: `sideband status`. Then Ctrl-C: exit 130, an adapter, no process left."""
    process = start("finetune", *TINY, "train.max_steps=100000", "fault.slow=[0:3,1:3]", cwd=tmp_path)
    run = tmp_path / "runs" / "latest"
    try:
        wait_for(run, "committed", process)
        status = tsugi("sideband", "status", "--json", cwd=tmp_path)
        table = tsugi("sideband", "status", cwd=tmp_path)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
    assert status.returncode == 0, status.stderr
    fleet = json.loads(status.stdout)
    assert [row["replica"] for row in fleet["replicas"]] == [0, 1]
    assert fleet["stage"] == "training"
    assert table.returncode == 0
    assert "training" in table.stdout
    assert process.returncode == 130, err
    summary = json.loads((run / "summary.json").read_text())
    assert summary["outcome"] == "interrupted"
    assert summary["samples"] > 0
    assert (run / "adapter" / "adapter_model.safetensors").exists()
    assert str(run.resolve()) in out
    await_no_process_of(run)


@pytest.mark.fresh
def test_ctrl_c_before_training_ends_at_once(tmp_path):
    process = start("finetune", *TINY, cwd=tmp_path)
    run = tmp_path / "runs" / "latest"
    try:
        await_true(lambda: processes_of(run) or process.poll() is not None, "its first process", WAIT_S)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
    assert process.returncode == 130, err
    await_no_process_of(run)
    assert json.loads((run / "status.jsonl").read_text().splitlines()[-1])["stage"] == "interrupted"


def test_a_mistake_that_only_a_worker_finds_is_the_users_and_named_with_its_log(tmp_path):
    """A LoRA target that the model does not have: the launcher never loads the model."""
    result = tsugi("finetune", *TINY, "lora.target_modules=[no_such_layer]", cwd=tmp_path)
    assert result.returncode == 2
    assert "failed" in result.stderr
    assert "no_such_layer" in result.stderr
    assert "worker0.log" in result.stderr
    run = tmp_path / "runs" / "latest"
    assert json.loads((run / "summary.json").read_text())["outcome"] == "failed"
    await_no_process_of(run)


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path):
    result = tsugi("finetune", *TINY, "train.lr=1e30", "train.grad_clip=1e30", "train.warmup=0", cwd=tmp_path)
    assert result.returncode == 6
    assert "lower train.lr" in result.stderr
    assert not (tmp_path / "runs" / "latest" / "adapter").exists()


@pytest.mark.fresh
def test_a_killed_worker_ends_a_run_that_needs_it_and_is_named(tmp_path):
    needed = ["topology.min_replicas=2", "topology.quorum_timeout_s=0"]
    process = start("finetune", *TINY, *needed, "train.max_steps=100000", cwd=tmp_path)
    run = tmp_path / "runs" / "latest"
    try:
        wait_for(run, "committed", process)
        joined = {event["replica"]: event["pid"] for event in events(run) if event["event"] == "joined"}
        os.kill(joined[1], signal.SIGKILL)
        _, err = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
    assert process.returncode == 7
    assert "replica 1 (its worker was killed (SIGKILL))" in err
    await_no_process_of(run)
    last = json.loads((run / "status.jsonl").read_text().splitlines()[-1])
    assert (last["stage"], last["health"]) == ("failed", "degraded"), "the last picture does not say that it trains"
    failed = [event for event in events(run) if event["event"] == "failed"]
    assert len(failed) == 1
    assert "replica" in failed[0]["reason"]


@pytest.mark.fresh
def test_workers_end_when_the_launcher_is_killed(tmp_path):
    """No orphan trains on: the hub's silence ends the workers, which say what is kept."""
    process = start("finetune", *TINY, "train.max_steps=100000", "sideband.hub_timeout_s=3", cwd=tmp_path)
    run = tmp_path / "runs" / "latest"
    try:
        wait_for(run, "committed", process)
        process.kill()
        process.wait(timeout=WAIT_S)
        assert len(processes_of(run)) >= 2, "they outlive it at first"
        await_no_process_of(run, WAIT_S)
        logs = [log.read_text() for log in (run / "logs").iterdir()]
        assert any("has been silent for 3 s; kept is " in log or "nothing is kept" in log for log in logs)
    finally:
        end_with(signal.SIGKILL, *processes_of(run))


def test_changed_config_is_noticed(finished, tmp_path):
    """A worker compares the hash; nobody trains on a configuration that the launcher did not write."""
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(finished.resolve(), copy)
    text = (copy / "config.yaml").read_text().replace("max_steps: 24", "max_steps: 25")
    (copy / "config.yaml").write_text(text)
    worker = [sys.executable, "-m", "tsugi_cli.finetune.worker", "--run-dir", str(copy), "--replica", "0"]
    result = subprocess.run(worker, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert result.returncode != 0
    assert "was changed after the launch" in result.stderr


def test_slow_replica_does_not_slow_the_other_one(tmp_path):
    """Not a timing: with an injected 4x delay the fast one takes most of the data, and all of it is used once."""
    result = tsugi("finetune", *TINY, "train.max_steps=120", "train.micro_batch=4", "fault.slow=[1:6.0]",
                   cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "runs" / "latest" / "summary.json").read_text())
    fast, slow = summary["replicas"]
    assert fast["samples"] + slow["samples"] == 480
    assert fast["samples"] > 2 * slow["samples"]


def test_resolved_config_alone_runs_again_with_the_same_hash(finished, tmp_path):
    result = tsugi("finetune", f"recipe={finished / 'config.yaml'}", "--dry-run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (finished / "config.sha256").read_text().strip() in result.stdout
    assert not (tmp_path / "runs").exists(), "--dry-run starts nothing and writes nothing"
