"""A hub that trains nothing and all that joined it are killed at once: the run goes on from the hub's machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.process.test_finetune import TINY, WAIT_S, start
from tests.process.test_join import join, run_dir
from tests.process.test_join import started as processes  # noqa: F401  (a fixture)
from tests.support import await_true, processes_of
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.checkpoints import Checkpoint, Store
from tsugi_kpool.core.checkpoint import ANCHORS
from tsugi_kpool.exchange.reduction import LEFT
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.keys import Role

pytestmark = [pytest.mark.process, pytest.mark.nightly, pytest.mark.timeout(400)]
SETTINGS = [*TINY, "topology.data_plane=exchange", "evaluate.examples=0", "train.checkpoint.every_s=2"]
NAMES = ("a", "b")
Started = list[subprocess.Popen[str]]


def fleet(root: Path, started: Started, *words: str) -> tuple[RunPaths, Started]:
    """A hub alone and two replicas that join it, each in a folder of its own."""
    before = (root / "hub" / "runs" / "latest").resolve()
    hub = start("hub", *words, cwd=root / "hub")
    started.append(hub)
    await_true(lambda: (root / "hub" / "runs" / "latest").resolve() != before, "a run directory", WAIT_S)
    paths = RunPaths(run_dir(root / "hub", hub))
    keys = sideband_keys.load(paths.keys)
    secret = token.write(keys, Role.MEMBER)
    joined = [join(keys.address, secret, "--yes", cwd=root / name) for name in NAMES]
    started += joined
    return paths, [hub, *joined]


def newest(paths: RunPaths, alive: Started) -> Callable[[], Checkpoint | None]:
    """The newest checkpoint behind the first few rounds."""

    def found() -> Checkpoint | None:
        for each in alive:
            assert each.poll() is None, each.communicate()
        checkpoint = Store(paths.checkpoints).newest().newest
        return checkpoint if checkpoint is not None and checkpoint.manifest.version > 3 else None

    return found


def kill_all(root: Path, launched: Started) -> None:
    for pid in {*(each.pid for each in launched), *processes_of(root)}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for each in launched:
        each.communicate()


def test_all_die_at_once_and_the_run_goes_on_from_the_hubs_checkpoint(tmp_path, processes):  # noqa: F811
    for name in ("hub", *NAMES):
        (tmp_path / name).mkdir()
    slow = "fault.slow=[0:6.0,1:6.0]"
    first, alive = fleet(tmp_path, processes, *SETTINGS, "train.max_steps=4000", slow)
    await_true(newest(first, alive), "a checkpoint", WAIT_S)
    kill_all(tmp_path, alive)
    began = Store(first.checkpoints).newest().newest
    assert began is not None
    assert began.manifest.parts == [0]
    before = load_file(began.path / ANCHORS)
    assert LEFT in before, "with what the exchange has left over"

    # Nothing is learnt any more: whoever began anew would end with other anchors.
    again, alive = fleet(tmp_path, processes, f"resume={first.root}", "train.lr=1e-9", "train.max_steps=100")
    for each in alive:
        out, err = each.communicate(timeout=WAIT_S)
        assert each.returncode == 0, out[-2000:] + err[-2000:]
    summary = json.loads(again.summary.read_text())
    assert (summary["outcome"], summary["samples"], summary["replayed"]) == ("finished", 200, 0)
    assert summary["resumed"]["checkpoint"] == began.path.name
    last = Store(again.checkpoints).newest().newest
    assert last is not None
    assert last.manifest.samples == 200
    drift = abs(load_file(last.path / ANCHORS)["anchor"] - before["anchor"]).max()
    assert drift < 1e-3, "a few steps at the first run's rate are twenty times that"
