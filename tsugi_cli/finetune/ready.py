"""Data of a run, prepared: found in the cache, or made. No torch or transformers before something must be made."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsugi_cli.config.compose import to_tree
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.config.templates import jinja_of
from tsugi_cli.data import cache
from tsugi_cli.data.facts import Facts, Watch
from tsugi_cli.record.run_dir import RunPaths

from .model import load_config, load_tokenizer, local_folder, prepare, quieten, sizes
from .source import size_bytes, source_of

if TYPE_CHECKING:
    from tsugi_cli.data.kitchen import Kitchen
    from tsugi_cli.data.prepared import Prepared

OURS = "tsugi_cli.recipes."
"""Builders that come with Tsugi make the same of the same settings, in the same version of it."""
NOT_PREPARED = frozenset({"scorer", "group_by_length"})
"""Settings of `data` that change nothing of what is prepared."""
FEW_BYTES = 4 << 20
"""Of a file that one process reads as soon as several would."""


def silent(what: str, done: int, total: int) -> None:
    """Nobody looks."""


def known(spec: RunSpec) -> Facts | None:
    """What is in the cache for this run; None also where that cannot be told without running a user's code.

    Raises:
        DataError: the data cannot be read.
    """
    content = _content(spec, source_of(spec.data))
    folder = local_folder(spec.model)
    return None if content is None or folder is None else cache.find(_key(spec, content, folder))


def ready(spec: RunSpec, watch: Watch = silent, processes: int | None = None) -> Facts:
    """The run's data, prepared now unless they are; several processes may ask at once.

    Raises:
        DataError: they cannot be trained on; says why, row by row.
        ConfigError: `data.builder` cannot be used.
        MachineError: the model cannot be had, or there is no place to keep them.
    """
    prepare(spec.model)
    source = source_of(spec.data)
    content = _content(spec, source) or source.digest()
    folder = local_folder(spec.model)
    if folder is None:  # a name on the hub: loading the tokenizer fetches what is needed
        load_tokenizer(spec.model)
        folder = local_folder(spec.model)
    key = (
        cache.key_of(content, str(spec.model.path), _settings(spec))
        if folder is None
        else _key(spec, content, folder)
    )
    return cache.find(key) or _make(spec, source, key, watch, processes or _processes(source))


def _make(spec: RunSpec, source: Any, key: str, watch: Watch, processes: int) -> Facts:
    from tsugi_cli.data.prepare import make, read_rows  # what stands in the cache needs none of it

    with cache.making(key) as scratch:
        if (found := cache.find(key)) is not None:
            return found  # another run has made it meanwhile
        if spec.data.packing:
            refuse_leaks(spec)
        users_own = spec.data.builder is not None
        rows = read_rows(source, spec.data, processes, watch, users_own)
        watch("loading the tokenizer", 0, 0)
        facts = make(rows, kitchen_of(spec), spec.data, source, processes, watch, scratch)
        return cache.publish(key, scratch, facts)


def refuse_leaks(spec: RunSpec) -> None:
    """Refuse to pack for a model that would see one sample of a row in the next one, as far as its config says so.

    Raises:
        ConfigError: it would.
    """
    from .leaks import refuse_by_config

    refuse_by_config(load_config(spec.model))


def checked(spec: RunSpec) -> dict[str, int]:
    """Read and check the rows of a file and tokenise none: how many would be train, eval and test.

    Raises:
        DataError: they cannot be read, or leave none to train on.
    """
    from tsugi_cli.data.prepare import read_rows
    from tsugi_cli.data.split import counts

    source = source_of(spec.data)
    rows = read_rows(source, spec.data, _processes(source), silent, False)
    return counts(rows.split.parts)


def previewed(spec: RunSpec, rows: int) -> dict[str, Any]:
    """The first samples, as `data.preview` shows them.

    Raises:
        TsugiError: model or data cannot be had.
    """
    from tsugi_cli.data.preview import preview

    prepare(spec.model)
    return preview(source_of(spec.data).whole, kitchen_of(spec), rows)


def opened(spec: RunSpec, paths: RunPaths | None = None) -> Prepared:
    """The run's data for whoever trains or evaluates on them: as its run directory says, else as `ready` finds them.

    Raises:
        TsugiError: they have gone, or cannot be prepared.
    """
    from tsugi_cli.data.prepared import open_entry

    if paths is not None and paths.prepared.exists():
        return open_entry(Path(Facts.parse(paths.prepared.read_bytes()).entry))
    return open_entry(Path(ready(spec).entry))


def kitchen_of(spec: RunSpec) -> Kitchen:
    """What rows are made into samples with: the model's tokenizer, template and sizes.

    Raises:
        DataError: the tokenizer or its template cannot be used.
    """
    from tsugi_cli.data.kitchen import Kitchen, Limits

    quieten()
    tokenizer = load_tokenizer(spec.model)
    vocabulary, positions = sizes(spec.model)
    limits = Limits(vocabulary, positions, lambda token: str(tokenizer.convert_ids_to_tokens(token)))
    return Kitchen(tokenizer, spec.data, limits)


def _processes(source: Any) -> int:
    """All cores, where there is enough for them to do."""
    if size_bytes(source) < FEW_BYTES and not any(getattr(each, "remote", None) for each in source.whole):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _key(spec: RunSpec, content: str, folder: Path | None) -> str:
    model = str(spec.model.path) if folder is None else cache.model_digest(folder)
    return cache.key_of(content, model, _settings(spec))


def _settings(spec: RunSpec) -> dict[str, Any]:
    data = {name: value for name, value in to_tree(spec)["data"].items() if name not in NOT_PREPARED}
    return {"data": data, "chat_template": jinja_of(spec.model.chat_template)}


def _content(spec: RunSpec, source: Any) -> str | None:
    """Digest of the data; None where only a user's code makes them.

    Raises:
        DataError: they cannot be read.
    """
    builder = spec.data.builder
    if builder is None:
        return str(source.digest())
    module = find_spec(builder.partition(":")[0]) if builder.startswith(OURS) else None
    if module is None or module.origin is None:
        return None
    room = sorted(Path(module.origin).parent.glob("*.py"))
    return f"{cache.files_digest(room)} {sys.version}"
