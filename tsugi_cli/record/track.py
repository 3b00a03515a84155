"""Experiment trackers (TensorBoard, Weights & Biases, MLflow, trackio), fed by a process beside the launcher.

The launcher imports neither the trackers nor torch, which accelerate's tracking module needs. It writes statuses as
JSON lines into the process's pipe, and the process passes them to accelerate's trackers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsugi_kpool.core.events import Name
from tsugi_kpool.core.messages import FleetStatus

from .measures import per_token
from .sinks import SinkError

EVERY_S = 2.0
"""Period of passing on a status."""
END_S = 30.0
"""Time for sending what is left when the run ends."""
BEHIND_BYTES = 1 << 20
"""Limit for what waits for a tracker that does not read: beyond it, new figures are left out."""
REPLICAS = 16
"""Largest fleet whose replicas have figures of their own: trackers draw a chart for each name."""


class Track:
    """The sink that feeds trackers. Its process is started by `start`, and ended by `close`.

    Args:
        trackers: Their names.
        run: The run's directory; its name names the experiment's run.
        project: What runs of the same kind are kept under.
        config: The run's settings, as plain values.
    """

    name = "tracking"

    def __init__(self, trackers: list[str], run: Path, project: str, config: Mapping[str, Any]) -> None:
        self._first = {"trackers": trackers, "run": str(run), "project": project, "config": dict(config)}
        self._log = run / "logs" / "tracking.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting = bytearray()
        self._evaluated: dict[str, Counter[str]] = {}
        self._next_s, self._step = 0.0, 0

    def start(self) -> None:
        """Start the process."""
        command = [sys.executable, "-m", "tsugi_cli.record.tracking"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, bufsize=0, start_new_session=True
            )
        self._tell(self._first)
        if self._process.stdin is not None:  # from now on nobody waits for it
            os.set_blocking(self._process.stdin.fileno(), False)

    def event(self, event: Mapping[str, Any]) -> None:
        """Pass on an evaluation at once, as the mean over all shares so far."""
        sums = event.get("sums")
        if event.get("event") == Name.EVALUATED and isinstance(sums, Mapping) and sums.get("loss_tokens"):
            stage = self._evaluated.setdefault(event["stage"], Counter())
            stage.update(sums)
            # While training it is one curve, whatever the version; before and after, a figure of its own.
            name = "" if event.get("version") else f"{event['stage']}_"
            values = {f"eval/{name}{measure}": value for measure, value in per_token(stage).items()}
            self._tell({"step": self._step, "values": values})

    def status(self, status: FleetStatus) -> None:
        """Pass on the fleet's figures, every few seconds."""
        self._push()
        if status.elapsed_s < self._next_s:
            return
        self._next_s, self._step = status.elapsed_s + EVERY_S, status.samples_done
        self._tell({"step": self._step, "values": figures(status)})

    def close(self) -> None:
        """Wait until the trackers have received what is left."""
        process = self._process
        if process is None or process.stdin is None:
            return
        try:
            process.communicate(bytes(self._waiting), END_S)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.wait()
            raise SinkError(f"not all was sent within {END_S:g} s (log: {self._log})") from error
        if process.returncode:
            raise SinkError(self._last_words())

    def _tell(self, fact: Mapping[str, Any]) -> None:
        if len(self._waiting) < BEHIND_BYTES:  # a status more or less does not matter
            self._waiting += json.dumps(fact, default=str).encode() + b"\n"
        self._push()

    def _push(self) -> None:
        """Write as much as the pipe takes: of a line that does not fit, the rest comes the next time."""
        process = self._process
        if process is None or process.stdin is None:
            return
        if process.poll() is not None:
            raise SinkError(self._last_words())
        try:
            while self._waiting and (written := process.stdin.write(self._waiting)):
                del self._waiting[:written]
        except BrokenPipeError as error:
            raise SinkError(self._last_words()) from error

    def _last_words(self) -> str:
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return f"{lines[-1][:200] if lines else 'its process has ended'} (log: {self._log})"


def figures(status: FleetStatus) -> dict[str, float]:
    """Return the figures of a status for trackers, without unknown ones."""
    found: dict[str, float | None] = {
        "train/loss": status.loss,
        "train/tokens": status.tokens,
        "train/tokens_per_s": status.tokens_per_s,
        "fleet/replicas": len([row for row in status.replicas if row.state not in ("left", "done", "failed")]),
        "fleet/rounds": status.version,
        "fleet/goodput": status.goodput,
        "fleet/tax_recovered": status.tax_recovered,
    }
    for row in status.replicas if len(status.replicas) <= REPLICAS else ():
        found[f"replica_{row.replica}/tokens_per_s"] = row.tokens_per_s
        found[f"replica_{row.replica}/lag_s"] = row.lag_s
    return {name: float(value) for name, value in found.items() if value is not None}
