"""A run of `tsugi finetune` with its faults, watched from outside."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.support import whole_lines
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.journal import parse
from tsugi_kpool.core.messages import FleetStatus
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.keys import Role
from tsugi_kpool.sideband.observer import ask_status

from .injector import Injector

WAIT_S = 200.0
TINY = ("model=tiny", "data.n_train=64", "data.n_eval=4", "data.n_test=0", "data.scorer=null", "evaluate.examples=0")
TINY += ("train.micro_batch=2", "train.lr=2e-3", "train.lease_ahead_s=1")


class Fleet:
    """The launcher, what it wrote, and its processes.

    Args:
        cwd: Its working directory.
        words: Overrides.
        injector: Whose traps the processes get.
        prefix: What the command is run by, such as `ip netns exec NAME`.
        command: `finetune`, or `hub`.
    """

    def __init__(
        self,
        cwd: Path,
        words: Sequence[str],
        injector: Injector | None = None,
        prefix: Sequence[str] = (),
        command: str = "finetune",
    ) -> None:
        cwd.mkdir(parents=True, exist_ok=True)
        self.injector, self._cwd, self._prefix = injector, cwd, tuple(prefix)
        self.others: list[subprocess.Popen[str]] = []
        self.launcher = self.start(command, "--plain", *words)
        self.await_true(lambda: (cwd / "runs" / "latest" / "sideband" / "keys.json").exists(), "the hub's keys")
        self.paths = RunPaths((cwd / "runs" / "latest").resolve())
        if injector is not None:
            injector.start()

    @property
    def traps(self) -> Injector:
        """The injector of a fleet that has one."""
        if self.injector is None:
            raise AssertionError("this fleet has no traps")
        return self.injector

    def start(
        self, *words: str, prefix: Sequence[str] | None = None, cwd: Path | None = None, module: str = "tsugi_cli.app"
    ) -> subprocess.Popen[str]:
        """A command of tsugi, with this fleet's traps."""
        command = [*(self._prefix if prefix is None else prefix), sys.executable, "-m", module, *words]
        env = self.injector.env() if self.injector is not None else None
        pipe, cwd = subprocess.PIPE, cwd or self._cwd
        cwd.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(command, cwd=cwd, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def join(self, name: str, *words: str, prefix: Sequence[str] | None = None) -> subprocess.Popen[str]:
        """`tsugi join` in a directory of its own."""
        keys = sideband_keys.load(self.paths.keys)
        command = ("join", str(keys.address), "--plain", "--yes", "--token", "-", *words)
        joined = self.start(*command, prefix=prefix, cwd=self._cwd / name)
        assert joined.stdin is not None
        joined.stdin.write(token.write(keys, Role.MEMBER) + "\n")
        joined.stdin.flush()
        self.others.append(joined)
        return joined

    def await_true(self, condition: Callable[[], object], what: str, wait_s: float = WAIT_S) -> None:
        deadline_s = time.monotonic() + wait_s
        while not condition():
            if self.launcher.poll() is not None:
                raise AssertionError(f"{what}: the run has ended: {self.launcher.communicate()}")
            if time.monotonic() > deadline_s:
                raise AssertionError(f"{what}: not within {wait_s:g} s")
            time.sleep(0.02)

    def told(self, name: str, **facts: object) -> list[dict[str, Any]]:
        """Events of this name, with their time in seconds as `time_s`."""
        found = whole_lines(self.paths.events)
        named = [each for each in found if each["event"] == name and facts.items() <= each.items()]
        return [{**each, "time_s": datetime.fromisoformat(each["time"]).timestamp()} for each in named]

    def commits_s(self) -> list[float]:
        """When rounds were committed, by the wall clock."""
        return [each["time_s"] for each in self.told("committed")]

    def status(self) -> FleetStatus:
        return ask_status(sideband_keys.load(self.paths.keys), 20.0)

    def records(self) -> list[Any]:
        return [each.record for each in parse(self.paths.journal.read_bytes()).entries]

    def end(self, wait_s: float = WAIT_S) -> tuple[int, str]:
        """Exit code, and what was said."""
        out, err = self.launcher.communicate(timeout=wait_s)
        return self.launcher.returncode, out + err

    def stop(self) -> None:
        """End what this fleet has started, whatever has become of it."""
        if self.injector is not None:
            self.injector.stop()
        for _ in range(2):  # the first signal asks, the second insists
            for process in (self.launcher, *self.others):
                if process.poll() is None:
                    process.terminate()
            for process in (self.launcher, *self.others):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=20)
        for process in (self.launcher, *self.others):
            process.kill()
            process.communicate()
