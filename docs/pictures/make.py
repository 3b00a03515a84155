"""Make the pictures of the docs from a real run: start `tsugi finetune` in one terminal and this in another.

    tsugi finetune model=tiny topology.replicas=4 'fault.slow=[1:4.0]' train.max_steps=8000 data.n_train=8000
    python docs/pictures/make.py --run runs/latest

It asks the run's hub for its status twice a second, as `tsugi console` does. At 60 % of the samples (--share 0.6) it
draws the console in a window of 80x24 and one of 160x50 and `tsugi sideband status`; once the run has ended, its
replay. With --readme it makes the pictures of README and docs/running.md instead, of whatever run it is given: the
console, and the closing report. With --recorded it draws a run that has ended, from what it wrote.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from datetime import datetime
from pathlib import Path

from rich.console import Console, RenderableType

from tsugi_cli.console import report, view
from tsugi_cli.console.history import History
from tsugi_cli.console.replay import Frame, Records, moments
from tsugi_cli.console.table import page
from tsugi_cli.record.records import Tail
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.messages import FleetStatus
from tsugi_kpool.errors import SidebandError
from tsugi_kpool.sideband import keys
from tsugi_kpool.sideband.observer import ask_status

HERE = Path(__file__).parent
README_SIZE = (100, 26)
SIZES = ((80, 24), (160, 50))
REPLAY_SIZE = (100, 30)
SHARE = 0.6
WAIT_S = 1200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/latest"))
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--recorded", action="store_true")
    parser.add_argument("--share", type=float, default=SHARE)
    options = parser.parse_args()
    paths = RunPaths(options.run.resolve())
    status, history = recorded(paths, options.share) if options.recorded else watch(paths, options.share)
    if options.readme:
        readme(paths, status, history)
    else:
        console_page(paths, status, history)


def readme(paths: RunPaths, status: FleetStatus, history: History) -> None:
    save(view.render(status, history, *README_SIZE), "console.svg", "tsugi finetune", README_SIZE[0])
    save(report.report(wait_for_summary(paths)), "report.svg", "tsugi finetune", README_SIZE[0])


def console_page(paths: RunPaths, status: FleetStatus, history: History) -> None:
    for width, height in SIZES:
        picture = view.render(status, history, width, height - 1)
        save(picture, f"console-{width}x{height}.svg", f"tsugi finetune   {width}x{height}", width)
    save(page(status, datetime.now()), "status.svg", "tsugi sideband status", 100)
    wait_for_summary(paths)
    save(replayed(paths), "replay.svg", f"tsugi console --run runs/{paths.root.name}", REPLAY_SIZE[0])


def watch(paths: RunPaths, share: float) -> tuple[FleetStatus, History]:
    """Follow the run until this share of its samples is done."""
    events, history = Tail(paths.events), History()
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        time.sleep(0.5)
        try:
            status = ask_status(keys.load(paths.keys))
        except SidebandError:
            continue
        history.observe(status)
        for event in events.read():
            history.record(event)
        if status.samples_done >= share * status.samples_total:
            return status, history
    raise SystemExit("the run did not get that far in time")


def recorded(paths: RunPaths, share: float) -> tuple[FleetStatus, History]:
    """The run as its own records show it, at this share of its samples; with more than 1 at its end."""
    history, status = History(), None
    for moment in moments(Records(paths), paths.root.name, 1.0):
        if isinstance(moment, Frame):
            status = moment.status
            history.observe(status)
            if share <= 1 and status.samples_done >= share * status.samples_total:
                break
        else:
            history.record(moment)
    if status is None:
        raise SystemExit("the run has recorded nothing")
    return status, history


def replayed(paths: RunPaths) -> RenderableType:
    """The last picture of the replay."""
    return view.render(*recorded(paths, math.inf), REPLAY_SIZE[0], REPLAY_SIZE[1] - 1)


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


def save(picture: RenderableType, name: str, title: str, width: int) -> None:
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(picture)
    console.save_svg(str(HERE / name), title=title)


if __name__ == "__main__":
    main()
