"""The end of a run: which version the adapter is that of, the summary, the report, and how to go on."""

from __future__ import annotations

import sys
from typing import Any

from tsugi_cli.finetune.card import with_results
from tsugi_cli.record.atomic import write_atomically, write_json
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.signals import Signals
from tsugi_kpool.checkpoints import Checkpoint
from tsugi_kpool.core.checkpoint import Manifest
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.quarantine import DISAGREED
from tsugi_kpool.errors import ExitCode, TsugiError
from tsugi_kpool.foreign import read_plain

from .request import RunRequest
from .summary import evaluated_whole, summarise
from .supervisor import complete
from .watch import RunningFleet

RECOVER_TIMEOUT_S = 1800


def close(
    request: RunRequest, paths: RunPaths, fleet: RunningFleet, signals: Signals, failure: TsugiError | None
) -> int:
    """Write the summary, show the report, and say where everything is."""
    outcome = _outcome(fleet, signals, failure)
    status = fleet.hub.status()
    agreed = _last_agreed(paths, fleet) if fleet.hub.ask(_disagreed) else None
    summary = fleet.hub.ask(lambda hub: summarise(request, paths, hub, status, outcome))
    fleet.checkpoints.evaluated(summary["evaluation"], fleet.hub.ask(evaluated_whole))
    best = _best(request, paths, fleet) if failure is None else None
    summary |= {"checkpoint": fleet.checkpoints.newest_path(), "adapter_of": best["checkpoint"] if best else agreed}
    summary |= {"best": best, "adapter": str(paths.adapter) if paths.adapter.exists() else None}
    summary |= {"go_on": None if outcome == "finished" else _how_to_go_on(paths, fleet)}
    try:
        write_json(paths.summary, summary)
        _tell_results(paths, summary)
    except OSError as error:
        fleet.console.message(f"{paths.summary} could not be written: {error.strerror or error}")
    if failure is not None:
        fleet.console.message(f"failed; what there is lies in {paths.root}\n{summary['go_on']}")
        raise failure
    fleet.console.report(summary)
    if signals.count:
        return signals.exit_code
    return ExitCode.OK if outcome == "finished" else ExitCode.STOPPED


def _disagreed(hub: Hub) -> bool:
    return DISAGREED in (hub.failure or "")


def _last_agreed(paths: RunPaths, fleet: RunningFleet) -> str | None:
    """Write the adapter of the newest checkpoint, because no replica's memory can be trusted; returns its name."""
    newest = fleet.checkpoints.store.newest().newest
    if newest is None:
        fleet.console.message("nothing that all replicas agreed on is on the disk: there is no adapter")
        return None
    return _write_adapter(paths, fleet, newest, "the newest state on the disk that all agreed on")


def _write_adapter(paths: RunPaths, fleet: RunningFleet, checkpoint: Checkpoint, why: str) -> str | None:
    """Write the adapter of a checkpoint and say so; returns the checkpoint's name, or None if that has failed."""
    name, of = checkpoint.path.name, checkpoint.manifest
    command = [sys.executable, "-m", "tsugi_cli.finetune.recover", "--run-dir", str(paths.root), "--checkpoint", name]
    code, said = complete(command, RECOVER_TIMEOUT_S)
    if code:
        reason = (said.strip().splitlines() or ["no reason is known"])[-1]
        fleet.console.message(f"the adapter of {name} could not be written: {reason}")
        return None
    until = f"version {of.version}, {of.samples} of {of.samples_total} samples"
    fleet.console.message(f"{paths.adapter} is that of {name} ({until}), {why}")
    return name


def _best(request: RunRequest, paths: RunPaths, fleet: RunningFleet) -> dict[str, Any] | None:
    """Make adapter/ that of the best version, where the run asks for it; returns which one it is."""
    best = fleet.checkpoints.store.best() if request.spec.train.checkpoint.best else None
    if best is None:
        return None
    newest, loss = fleet.checkpoints.newest, best.manifest.eval_loss
    name: str | None = best.path.name
    if newest is None or newest.path != best.path:
        name = _write_adapter(paths, fleet, best, f"the best one, with an eval loss of {loss:.4f}")
    return {"checkpoint": name, "version": best.manifest.version, "loss": loss} if name else None


def _tell_results(paths: RunPaths, summary: dict[str, Any]) -> None:
    """Add to the adapter's card what only the launcher knows: losses of the whole fleet."""
    if paths.card.exists():
        write_atomically(paths.card, with_results(read_plain(paths.card).decode("utf-8"), summary))


def _outcome(fleet: RunningFleet, signals: Signals, failure: TsugiError | None) -> str:
    """Return how the run ended. Only one that used up its data and committed everything has finished."""
    if failure is not None:
        return "failed"
    return "finished" if fleet.hub.ask(_complete) and not signals.count else "interrupted"


def _complete(hub: Hub) -> bool:
    return hub.complete


def _how_to_go_on(paths: RunPaths, fleet: RunningFleet) -> str:
    newest = fleet.checkpoints.store.newest().newest
    return go_on(paths, newest.manifest if newest else None)


def go_on(paths: RunPaths, newest: Manifest | None) -> str:
    """Return how to resume a run that has not finished; a checkpoint of all data resumes nothing.

    Args:
        paths: Its directory.
        newest: The manifest of its newest whole checkpoint.
    """
    if newest is None:
        return "no checkpoint was written: there is nothing to go on from"
    if newest.samples >= newest.samples_total:
        return f"all of its {newest.samples_total} samples were trained on: there is nothing to go on with"
    return f"to go on: tsugi finetune resume={paths.root}"
