"""What may follow on a command line of `key=value` words: keys, groups, values. Pure, but for names of files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from . import describe, schema
from . import overrides as typed
from .files import is_data

MOST_FILES = 200
Candidate = tuple[str, str]
"""(the whole word, what it does)."""


def words(incomplete: str) -> list[Candidate]:
    """Return the words that begin so. A key ends with "=", because its value follows without a space."""
    key, equals, text = incomplete.partition("=")
    found = _values(key, text) if equals else _keys(key)
    return sorted(each for each in found if each[0].startswith(incomplete))


def _keys(beginning: str) -> Iterator[Candidate]:
    """Groups and single keys; the keys of a section once its name is typed."""
    yield "recipe=", "a ready run, or a .yaml file of your own"
    yield "resume=", "go on from a checkpoint: last, or a run directory"
    for group in typed.group_options():
        yield (
            f"{group}=",
            {"model": "a name, folder or hub id", "data": "a name, file, folder or hub name"}.get(group, ""),
        )
    sections = {each.key.partition(".")[0] for each in describe.settings() if "." in each.key}
    inside = beginning.partition(".")[0] in sections and "." in beginning
    for each in describe.settings():
        if inside or "." not in each.key:
            yield f"{each.key}=", each.about
    if not inside:
        for section in sections:
            yield f"{section}.", "..."


def _values(key: str, text: str) -> Iterator[Candidate]:
    if key == "recipe":
        yield from ((f"{key}={name}", "") for name in typed.recipe_names())
        yield from ((f"{key}={path}", "") for path in _paths(text, lambda path: path.suffix in (".yaml", ".yml")))
    elif key == "resume":
        yield f"{key}=last", "the newest run"
        yield from ((f"{key}={path}", "") for path in _paths(text, lambda path: path.is_dir()))
    elif key in typed.group_options():
        yield from ((f"{key}={name}", "") for name in typed.group_options()[key])
        if key in typed.READERS:
            yield from (
                (f"{key}={path}", "") for path in _paths(text, lambda path: key == "model" or is_data(path.name))
            )
    elif key in schema.leaf_types():
        yield from ((f"{key}={value}", "") for value in _of_type(schema.leaf_types()[key]))


def _of_type(hint: Any) -> list[str]:
    parts = get_args(hint) or (hint,)
    found = schema.choices(hint)
    found += ["true", "false"] if bool in parts else []
    return found + (["null"] if type(None) in parts else [])


def _paths(text: str, wanted: Any) -> Iterator[str]:
    """Folders, each with a slash behind it, and the files that are wanted."""
    folder, _, beginning = text.rpartition("/")
    place = Path(f"{folder}/" if "/" in text else ".").expanduser()
    try:
        inside = sorted(place.iterdir())[:MOST_FILES]
    except OSError:
        return
    for path in inside:
        if path.name.startswith(beginning) and not (path.name.startswith(".") and not beginning):
            shown = f"{folder}/{path.name}" if "/" in text else path.name
            if path.is_dir():
                yield f"{shown}/"
            elif wanted(path):
                yield shown
