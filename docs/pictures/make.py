"""Make README's pictures from a real run: start `tsugi finetune` in one terminal and this in another.

    python docs/pictures/make.py --run runs/latest

It asks the run's hub for its status four times a second, as the console does, draws the console at 60 % of the
samples into console.svg, and the closing report into report.svg once the run has ended.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path

from rich.console import Console, RenderableType

from tsugi_cli import report, view
from tsugi_cli.history import History
from tsugi_cli.run_dir import RunPaths
from tsugi_kpool.core.messages import FleetStatus
from tsugi_kpool.errors import SidebandError
from tsugi_kpool.sideband import keys
from tsugi_kpool.sideband.observer import ask_status

HERE = Path(__file__).parent
WIDTH, HEIGHT = 100, 26
SHARE = 0.6
WAIT_S = 1200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/latest"))
    paths = RunPaths(parser.parse_args().run.resolve())
    history = History()
    status = watch(paths, history)
    save(view.render(status, history, WIDTH, HEIGHT), "console.svg", f"tsugi finetune   {paths.root.name}")
    summary = wait_for_summary(paths)
    save(report.report(summary), "report.svg", f"tsugi finetune   {paths.root.name}")


def watch(paths: RunPaths, history: History) -> FleetStatus:
    """Follow the run until SHARE of its samples are done."""
    told = 0
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        time.sleep(0.25)
        try:
            status = ask_status(keys.load(paths.keys))
        except SidebandError:
            continue
        history.observe(status)
        lines = paths.events.read_text(encoding="utf-8").splitlines()
        for line in lines[told:]:
            history.record(json.loads(line))
        told = len(lines)
        if status.samples_done >= SHARE * status.samples_total:
            return status
    raise SystemExit("the run did not get that far in time")


def wait_for_summary(paths: RunPaths) -> dict[str, object]:
    deadline_s = time.monotonic() + WAIT_S
    while not paths.summary.exists() and time.monotonic() < deadline_s:
        time.sleep(0.5)
    summary: dict[str, object] = json.loads(paths.summary.read_text(encoding="utf-8"))
    # A picture in the repository shows nobody's home directory.
    for key in ("adapter", "model", "run_dir"):
        summary[key] = (
            str(summary[key]).replace(str(Path.home()), "~").replace(str(paths.root.parent.parent) + "/", "")
        )
    return summary


def save(picture: RenderableType, name: str, title: str) -> None:
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(picture)
    console.save_svg(str(HERE / name), title=title)


if __name__ == "__main__":
    main()
