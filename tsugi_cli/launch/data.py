"""`tsugi data preview` and `tsugi data check`: show what would be trained on, before anything trains."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from tsugi_cli.config.compose import compose, config_hash, resolved_yaml
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.console.format import BAD, GOOD, LABEL, safe
from tsugi_cli.console.terminal import is_terminal, terminal
from tsugi_cli.data import report
from tsugi_cli.record.answer import Answer
from tsugi_cli.record.atomic import write_atomically
from tsugi_cli.record.places import temporary_folder
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.signals import Signals
from tsugi_kpool.errors import ExitCode

from .preparing import Onlooker, Stopped, apart, prepare

TRAINED = f"bold {GOOD}"


def preview(overrides: Sequence[str], rows: int, out: Answer) -> int:
    """Show the samples of the first rows, with trained tokens in colour and special tokens.

    Raises:
        TsugiError: the settings are wrong, or model or data cannot be had.
    """
    spec = compose(overrides)
    with Signals() as signals:
        try:
            found = _previewed(spec, rows, Onlooker(signals=signals))
        except Stopped:
            return signals.exit_code
    if out.json:
        out.put(found)
        return ExitCode.OK
    paper = terminal(out.people)
    for note in found["notes"]:
        paper.print(Text(f"note: {note}"))
    for each in found["samples"]:
        paper.print(_picture(each, marked=not is_terminal(out.people)), soft_wrap=True)
    return ExitCode.OK


def check(overrides: Sequence[str], plain: bool, out: Answer) -> int:
    """Prepare the data and report what became of the rows; nothing trains.

    Raises:
        DataError: they cannot be trained on.
        TsugiError: the settings are wrong, or the model cannot be had.
    """
    spec = compose(overrides)
    with Signals() as signals:
        try:
            with Onlooker(out.people, plain, signals) as onlooker:
                facts = prepare(spec, onlooker)
        except Stopped:
            return signals.exit_code
    out.tell(facts.report, map(safe, report.lines(facts.report)))
    return ExitCode.OK


def _previewed(spec: RunSpec, rows: int, onlooker: Onlooker) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=temporary_folder(), prefix="tsugi-", ignore_cleanup_errors=True) as scratch:
        paths = RunPaths(Path(scratch))
        write_atomically(paths.config, resolved_yaml(spec))
        write_atomically(paths.config_hash, config_hash(spec) + "\n")
        apart(paths, onlooker, ("--preview", str(rows)))
        return dict(json.loads(paths.preview.read_bytes()))


def _picture(sample: dict[str, Any], marked: bool) -> Text:
    """Return a sample as text. Without colour, [[ ]] marks what is trained."""
    text = Text(f"{safe(sample['place'])}  ", LABEL)
    for kind in ("refused", "dropped"):
        if kind in sample:
            return text.append(f"{kind}: {safe(sample[kind])}\n", BAD)
    text.append(f"{sample['side']}: " if "side" in sample else "", LABEL)
    text.append(f"{sample['tokens']} tokens, {sample['supervised_tokens']} trained", LABEL)
    text.append("".join(f"; {count} x {reason}" for reason, count in sample["changed"].items()) + "\n", LABEL)
    for piece, trained in sample["pieces"]:
        shown = safe(piece, keep="\n")
        text.append(f"[[{shown}]]" if marked and trained else shown, TRAINED if trained else "")
    return text.append("\n")
