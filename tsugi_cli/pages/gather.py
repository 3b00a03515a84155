"""Reads a run directory into the facts of its report. Nothing there is changed; what cannot be read is left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from tsugi_cli.console.replay import Records
from tsugi_cli.record.meant import LATEST, NoRun, meant
from tsugi_cli.record.records import number, seconds
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.renamed import renewed
from tsugi_kpool.errors import ConfigError
from tsugi_kpool.foreign import SMALL_BYTES, read_plain

from .changed import changed
from .facts import RunFacts
from .story import Story

TOTALS = ("wall_s", "samples", "samples_total", "tokens", "tokens_per_s", "goodput", "replayed", "version")
EXAMPLE = ("request", "expected", "base", "trained")


def found(given: Sequence[str]) -> list[RunPaths]:
    """Return the directories of the runs that are meant: without any, the newest run.

    Raises:
        ConfigError: one is no run directory, named with what is beside it.
    """
    paths, problems = [], []
    for text in given or [LATEST]:
        try:
            paths.append(meant(text, "behind: tsugi report DIR"))
        except NoRun as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return list(dict.fromkeys(paths))


def gather(paths: RunPaths) -> RunFacts:
    """Return the facts of one run."""
    facts = RunFacts(paths.root.name, str(paths.root))
    if any(path.is_file() for path in (paths.status, paths.events, paths.metrics)):
        _told(facts, paths)
    summary = _summary(facts, paths)
    if summary:
        _sum_up(facts, summary)
    try:
        facts.changed, facts.settings_known = changed(paths), True
    except ConfigError as error:
        facts.left_out += [f"{each}: settings are left out" for each in error.problems]
    return facts


def _told(facts: RunFacts, paths: RunPaths) -> None:
    records, story = Records(paths), Story(facts)
    for at_s, kind, record in records.read():
        facts.began = facts.began or _began(record)
        story.take(kind, record, at_s)
    story.end()
    if words := records.left_out():
        facts.left_out.append(words)


def _began(record: Mapping[str, Any]) -> str:
    at_s = seconds(dict(record))
    return "" if at_s is None else datetime.fromisoformat(str(record["time"])).isoformat(" ", "seconds")


def _summary(facts: RunFacts, paths: RunPaths) -> dict[str, Any]:
    """Return summary.json; nothing where it is missing or damaged."""
    try:
        value = renewed(json.loads(read_plain(paths.summary, SMALL_BYTES)))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return value
    facts.left_out.append(f"{paths.summary.name} could not be read and was left out")
    return {}


def _sum_up(facts: RunFacts, summary: Mapping[str, Any]) -> None:
    facts.outcome = str(summary.get("outcome") or "ended")
    facts.recipe, facts.model = str(summary.get("recipe") or ""), str(summary.get("model") or "")
    facts.go_on = str(summary.get("go_on") or "")
    facts.totals |= {name: value for name in TOTALS if (value := number(summary.get(name))) is not None}
    for stage, measures in _mapping(summary.get("evaluation")).items():
        facts.evaluation[str(stage)] = {
            str(name): value for name, each in _mapping(measures).items() if (value := number(each)) is not None
        }
    for example in _list(summary.get("examples")):
        texts = _mapping(example)
        facts.examples.append({name: str(texts[name]) for name in EXAMPLE if texts.get(name) is not None})
    for row in _list(summary.get("replicas")):
        _replica(facts, _mapping(row))


def _replica(facts: RunFacts, row: Mapping[str, Any]) -> None:
    own = next((each for each in facts.replicas if each.replica == row.get("replica")), None)
    if own is None:
        return
    busy_s, trained_s = number(row.get("busy_s")), number(row.get("trained_s"))
    own.tokens_per_s = number(row.get("tokens_per_s"))
    own.share = number(row.get("share"))
    own.sent_bytes = int(number(row.get("sent_bytes")) or 0)
    own.steps, own.samples, own.tokens = (int(number(row.get(n)) or 0) for n in ("steps", "samples", "tokens"))
    if busy_s is not None and trained_s is not None:
        own.computed_s, own.waited_s = busy_s, max(0.0, trained_s - busy_s)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()
