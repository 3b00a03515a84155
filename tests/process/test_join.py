"""A second machine: an address and a token are all it needs, and without the token it learns nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.process.test_finetune import TINY, WAIT_S, events, start, tsugi, wait_for
from tests.support import await_true
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.keys import Role, RunKeys

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]


SLOW = "fault.slow=[0:3,1:3]"


def run_dir(cwd: Path, process: subprocess.Popen[str]) -> Path:
    """The run's directory once its hub listens."""
    deadline_s = time.monotonic() + WAIT_S
    keys = cwd / "runs" / "latest" / "sideband" / "keys.json"
    while not keys.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    return (cwd / "runs" / "latest").resolve()


def join(
    address: str, secret: str, *overrides: str, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """`tsugi join` in a directory of its own; the token comes in by stdin."""
    command = [sys.executable, "-m", "tsugi_cli.app", "join", address, "--token", "-", *overrides]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=cwd, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)
    assert process.stdin is not None
    process.stdin.write(secret + "\n")
    process.stdin.flush()
    return process


def digest(run: Path) -> str:
    return hashlib.sha256((run / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def started():
    """Processes that are ended with the test: the first signal asks, the second insists."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        for _ in range(2):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1.0)
    for process in processes:
        process.communicate(timeout=60)


@pytest.fixture
def here(tmp_path):
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path):
    (tmp_path / "there").mkdir()
    return tmp_path / "there"


@pytest.mark.fresh
def test_second_machine_trains_and_both_hold_the_same_adapter(here, there, started):
    """The other one has a home of its own and no data file: the hub gives it the prepared data."""
    rows = [json.dumps({"prompt": f"question {n}", "completion": f"answer {n * n}"}) for n in range(72)]
    (here / "mine.jsonl").write_text("\n".join(rows), encoding="utf-8")
    packed = ("data=mine.jsonl", "data.packing=true", "data.max_tokens=400")
    launcher = start("finetune", *TINY, *packed, "train.max_steps=24", "topology.here=1", cwd=here)
    started.append(launcher)
    run = run_dir(here, launcher)
    keys = sideband_keys.load(run / "sideband" / "keys.json")
    secret = token.write(keys, Role.MEMBER)
    home = {**os.environ, "HOME": str(there), "XDG_CACHE_HOME": str(there / "cache")}
    started.append(joined := join(keys.address, secret, cwd=there, env=home))
    said, wrong = joined.communicate(timeout=WAIT_S)
    assert joined.returncode == 0, wrong
    assert not list(there.rglob("mine.jsonl"))
    (entry,) = (there / "cache" / "tsugi" / "prepared").glob("[0-9a-f]*")
    assert (entry / "train.arrow").stat().st_size > 0
    shown, wrong = launcher.communicate(timeout=WAIT_S)
    assert launcher.returncode == 0, wrong
    other = (there / "runs" / "latest").resolve()
    assert digest(run) == digest(other)
    assert "packing: true" in (other / "config.yaml").read_text()
    assert {e["replica"] for e in events(run) if e["event"] == "joined"} == {0, 1}
    assert sideband_keys.load(other / "sideband" / "keys.json").hub_secret == ""
    assert not any(event["event"] == "refused" for event in events(run)), "an honest fleet is never refused"
    for text in (said, shown, *(p.read_text() for d in (run, other) for p in d.glob("*.yaml"))):
        assert secret not in text
        assert keys.member_secret not in text


def take_back_while_it_loads(keys, launcher, there, started):
    """Ctrl-C before the replica has joined: its place is free again, and the run does not notice."""
    started.append(loading := join(keys.address, token.write(keys, Role.MEMBER), cwd=there))
    place = there / "runs" / "latest" / "sideband" / "place.json"
    await_true(lambda: place.exists() or loading.poll() is not None, "a place")
    loading.send_signal(signal.SIGINT)
    said, wrong = loading.communicate(timeout=WAIT_S)
    assert (loading.returncode, "it leaves no adapter" in said) == (130, True), said + wrong
    assert launcher.poll() is None


def test_a_replica_that_nobody_planned_joins_a_running_job(here, there, started):
    words = ("topology.replicas=1", "topology.spare=1", "train.max_steps=200", "fault.slow=[0:8]")
    launcher = start("finetune", *TINY, *words, cwd=here)
    started.append(launcher)
    run = run_dir(here, launcher)
    keys = sideband_keys.load(run / "sideband" / "keys.json")
    wait_for(run, "committed", launcher)
    take_back_while_it_loads(keys, launcher, there, started)
    started.append(joined := join(keys.address, token.write(keys, Role.MEMBER), cwd=there))
    _, wrong = joined.communicate(timeout=WAIT_S)
    assert joined.returncode == 0, wrong
    _, wrong = launcher.communicate(timeout=WAIT_S)
    assert launcher.returncode == 0, wrong
    assert "interrupted" not in [event["event"] for event in events(run)]
    assert [event["members"] for event in events(run) if event["event"] == "generation"] == [[0], [0, 1]]
    assert digest(run) == digest((there / "runs" / "latest").resolve())
    summary = json.loads((run / "summary.json").read_text())
    trained = [row["samples"] for row in summary["replicas"]]
    assert len(trained) == 2
    assert min(trained) > 0, "it has trained"
    assert sum(trained) == 400
    assert {"base", "trained"} == set(summary["evaluation"]), "the planned one has measured all"


def test_ctrl_c_there_takes_that_replica_back_and_loses_nothing(here, there, started):
    launcher = start("finetune", *TINY, "train.max_steps=120", SLOW, "topology.here=1", cwd=here)
    started.append(launcher)
    run = run_dir(here, launcher)
    keys = sideband_keys.load(run / "sideband" / "keys.json")
    started.append(joined := join(keys.address, token.write(keys, Role.MEMBER), cwd=there))
    wait_for(run, "committed", launcher)
    joined.send_signal(signal.SIGINT)
    _, wrong = joined.communicate(timeout=WAIT_S)
    assert joined.returncode == 130, wrong
    _, wrong = launcher.communicate(timeout=WAIT_S)
    assert launcher.returncode == 0, wrong
    (left,) = [event for event in events(run) if event["event"] == "left"]
    assert (left["replica"], left["reason"], left["again"]) == (1, "its user stopped it", 0)
    assert "interrupted" not in [event["event"] for event in events(run)]
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["samples"], summary["replayed"]) == (240, 0)
    assert (there / "runs" / "latest" / "adapter" / "adapter_model.safetensors").exists()


def test_without_the_token_nothing_is_learnt(here, there):
    """Another run's token, an observer's, and a mistyped one; the hub stays as it was."""
    hub = start("hub", *TINY, cwd=here)
    try:
        run = run_dir(here, hub)
        keys = sideband_keys.load(run / "sideband" / "keys.json")
        member = token.write(keys, Role.MEMBER)
        expected = {
            token.write(RunKeys.generate(), Role.MEMBER): (11, "no hub answers"),
            token.write(keys, Role.OBSERVER): (2, "an observer's"),
            member[:20] + ("A" if member[20] != "A" else "B") + member[21:]: (2, "checksum"),
        }
        for text, (code, words) in expected.items():
            said, wrong = (joined := join(keys.address, text, cwd=there)).communicate(timeout=WAIT_S)
            assert (joined.returncode, words in wrong) == (code, True), wrong
            assert said == ""
            assert list(there.iterdir()) == []
        assert tsugi("stop", str(run), cwd=there).returncode == 0
        said, _ = hub.communicate(timeout=WAIT_S)
        assert (hub.returncode, "nothing to go on from" in said) == (9, True), "who stops it has not finished it"
    finally:
        if hub.poll() is None:
            hub.send_signal(signal.SIGINT)
            hub.communicate(timeout=WAIT_S)


def test_without_keys_the_run_works_and_says_what_that_means(here, there, started):
    """`sideband.insecure=true` and `--insecure` go together; each alone finds nobody.

    `tsugi stop` ends it in good order: both have the same adapter, and neither says that it has finished.
    """
    settings = ["train.max_steps=600", SLOW, "topology.here=1", "evaluate.examples=0"]
    launcher = start("finetune", *TINY, *settings, "sideband.insecure=true", "--plain", cwd=here)
    started.append(launcher)
    run = run_dir(here, launcher)
    keys = sideband_keys.load(run / "sideband" / "keys.json")
    assert not keys.curve
    stranger = replace(RunKeys.generate(), address=keys.address)
    refused = join(keys.address, token.write(stranger, Role.MEMBER), cwd=there)
    _, wrong = refused.communicate(timeout=WAIT_S)
    assert (refused.returncode, "no hub answers" in wrong) == (11, True), "a token was asked for, and there is none"
    assert list(there.iterdir()) == []
    joined = start("join", keys.address, "--insecure", cwd=there)
    started.append(joined)
    wait_for(run, "committed", launcher)
    stopped = tsugi("stop", "--run", str(run), cwd=there)
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert re.search(r"interrupted at \d+ of 1200 samples", stopped.stdout)
    assert f"tsugi finetune resume={run}" in stopped.stdout
    said, wrong = joined.communicate(timeout=WAIT_S)
    assert (joined.returncode, "before the run's data were used up" in said) == (9, True), wrong
    shown, wrong = launcher.communicate(timeout=WAIT_S)
    assert launcher.returncode == 9, wrong
    assert f"to go on: tsugi finetune resume={run}" in shown
    assert json.loads((run / "summary.json").read_text())["outcome"] == "interrupted"
    assert "no key is asked for and nothing is encrypted" in shown
    assert f"tsugi join {keys.address} --insecure" in shown
    assert digest(run) == digest(there / "runs" / "latest")


def test_insecure_at_a_hub_that_asks_for_keys_finds_nobody(here, there):
    hub = start("hub", *TINY, cwd=here)
    try:
        keys = sideband_keys.load(run_dir(here, hub) / "sideband" / "keys.json")
        joined = start("join", keys.address, "--insecure", cwd=there)
        _, wrong = joined.communicate(timeout=WAIT_S)
        assert (joined.returncode, "no hub answers" in wrong) == (11, True), wrong
    finally:
        hub.send_signal(signal.SIGINT)
        hub.communicate(timeout=WAIT_S)
