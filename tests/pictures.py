"""What tests of the console share: statuses, events, a past, and how a picture is drawn into lines."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console as Terminal

from tsugi_cli.console import view
from tsugi_cli.console.history import History
from tsugi_kpool.core.messages import FleetStatus, ReplicaStatus

NAN = float("nan")
HOSTILE = "[red]x[/red] [/bold] \x1b[31m\x1b]0;owned\x07 a\r\nb\u202e\u200b\udc80"
SUMMARY = {
    "run": "tools",
    "outcome": "finished",
    "evaluation": {
        "base": {"loss": 2.4123, "parses": 0.031, "exact": 0.0},
        "trained": {"loss": 0.3121, "parses": 1.0, "exact": 0.912},
    },
    "examples": [{"request": "Wake me", "expected": '{"a": 1}', "base": "Sorry", "trained": '{"a": 1}'}],
    "wall_s": 243.2,
    "tokens": 58123,
    "samples": 448,
    "rounds": 42,
    "tokens_per_s": 231.4,
    "goodput": 0.987,
    "replicas": [
        {"replica": 0, "samples": 358, "tokens": 46500, "tokens_per_s": 212.2, "share": 0.8},
        {"replica": 1, "samples": 90, "tokens": 11623, "tokens_per_s": 53.1, "share": 0.2},
    ],
    "model": "/models/base",
    "adapter": "runs/tools/adapter",
}


def replica(number: int, **changes: object) -> ReplicaStatus:
    values: dict[str, object] = {
        "replica": number, "host": f"node-{number}.cluster.example.org", "state": "training",
        "steps": 100, "samples": 200, "tokens": 8000, "tokens_per_s": 212.3, "step_s": 0.38,
        "lag_s": 0.0, "lag_steps": 0, "fill": 0.5, "share": 0.5, "sent_bytes": 5_400_000, "silent_s": 0.1,
    }  # fmt: skip
    return ReplicaStatus(**{**values, **changes})  # type: ignore[arg-type]


def fleet(n: int = 2, **changes: object) -> FleetStatus:
    rows = tuple(replica(i, lag_s=float(i % 7), lag_steps=i % 7 * 3) for i in range(n))
    values: dict[str, object] = {
        "run": "tools", "stage": "training", "expected": n, "generation": 1, "version": 12, "elapsed_s": 83.0,
        "samples_done": 42, "samples_total": 448, "eta_s": 100.0, "tokens": 15_600, "tokens_per_s": 231.0,
        "goodput": 0.99, "loss": 1.234, "firing": (2, 5), "rounds": {"count": 9, "link free": 3}, "aborted": 0,
        "pool_text": "K=2 of N=8, local, int8", "trigger_text": "fires at 4 steps per replica",
        "replicas": rows,
    }  # fmt: skip
    return FleetStatus(**{**values, **changes})  # type: ignore[arg-type]


def unknown_fleet() -> FleetStatus:
    rows = (
        replica(0, host="", tokens_per_s=NAN, step_s=0.0, lag_s=NAN, fill=NAN, share=NAN),
        replica(1, lag_s=float("inf"), fill=9.0, share=-1.0, tokens_per_s=1e30, lag_steps=10**9, silent_s=NAN),
    )
    return fleet(
        samples_total=0, samples_done=0, eta_s=None, goodput=None, loss=None, firing=(), rounds={}, version=0,
        tokens_per_s=NAN, replicas=rows,
    )  # fmt: skip


def past(status: FleetStatus, steps: int = 80) -> History:
    """A history in which every kind of thing has happened."""
    history = History()
    for i in range(steps):
        rows = tuple(replica(r.replica, steps=i, step_s=0.3 + i % 5 / 10) for r in status.replicas)
        history.observe(fleet(tokens=i, loss=2.0 - i / 100, replicas=rows))
    for i in range(30):
        history.record(event("joined", replica=i, host=f"node-{i}", pid=i))
    history.record(event("committed", round=1, version=1, seconds=0.4, payload_bytes=1234567))
    return history


def event(name: str, **data: object) -> dict[str, object]:
    return {"time": "2026-10-05T14:03:07.123+02:00", "event": name, **data}


def drawn(renderable: object, width: int = 80, color: bool = False) -> list[str]:
    out = Terminal(
        file=StringIO(),
        width=width,
        height=24,
        force_terminal=color,
        color_system="standard" if color else None,
    )
    out.print(renderable, crop=False)
    assert isinstance(out.file, StringIO)
    return out.file.getvalue().removesuffix("\n").split("\n")


def shown(status: FleetStatus, width: int = 80, height: int = 24) -> str:
    return "\n".join(drawn(view.render(status, past(status), width, height), width))


class Tty(StringIO):
    """A terminal that only remembers; `breaks` makes it behave like one that went away."""

    encoding = "utf-8"  # type: ignore[assignment]
    breaks = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.breaks:
            raise BrokenPipeError
        return super().write(text)


@pytest.fixture
def xterm(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return monkeypatch
