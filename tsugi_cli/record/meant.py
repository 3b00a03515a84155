"""Which run a user means. Every command that reads a run directory asks here: without one all answer alike."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from tsugi_kpool.errors import ConfigError, SidebandError

from .run_dir import RunPaths, find_run

LATEST = "latest"
"""What a user may write for the newest run."""


class NoRun(ConfigError):
    """There is no run where the user says, or nowhere at all. Who waits for a run to begin catches this."""


def meant(given: Path | str | None, naming: str = "with --run DIR") -> RunPaths:
    """Return the run that a user means: the directory that is named, else the newest run.

    Args:
        given: What the user has typed; None, or `latest`, for the newest run.
        naming: How this command is told a run's name.

    Raises:
        NoRun: there is none.
    """
    named = None if given is None or str(given) == LATEST else Path(given)
    paths = find_run(named)
    if paths is None:
        raise NoRun([f"no run found here; start one with `tsugi finetune`, or name one {naming}"])
    shown = named or paths.root
    if not paths.root.is_dir():
        raise NoRun([f"{shown}: no such run directory{_nearest(shown)}"])
    files = (paths.config, paths.keys, paths.summary, paths.events, paths.metrics, paths.status)
    if not any(path.exists() for path in files):
        told = ", ".join(str(path.relative_to(paths.root)) for path in files)
        raise NoRun([f"{shown} is no run directory: it holds none of {told}"])
    return paths


def unheard(paths: RunPaths) -> SidebandError:
    """Return the error for a run whose hub nobody can ask: it has written no keys."""
    return SidebandError(f"{paths.root}: its hub does not listen yet, or never did")


def _nearest(shown: Path) -> str:
    """Return "; did you mean X?" for the directory beside it whose name is nearest, or nothing."""
    try:
        beside = [each.name for each in shown.parent.iterdir() if each.is_dir()]
    except OSError:
        return ""
    close = get_close_matches(shown.name, beside, n=1, cutoff=0.5)
    return f"; did you mean {shown.parent / close[0]}?" if close else ""
