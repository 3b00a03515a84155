"""Where prepared data are kept from run to run: a folder for each content, tokenizer, template, settings and code.

Entries appear whole or not at all, so that runs may prepare the same at once. An entry that was damaged is no entry.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from tsugi_cli.record.atomic import write_json
from tsugi_cli.record.places import cache_folder
from tsugi_kpool.errors import MachineError

from .facts import MANIFEST, Facts

SEAL = "seal.json"
"""Of every file its size, time and hash."""
KEPT_S = 30 * 24 * 3600.0
"""An entry that no run has used for so long is deleted when another is made."""
LIBRARIES = ("transformers", "tokenizers", "datasets")
"""Their versions may change what a row becomes."""
WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"})


def folder() -> Path:
    """Of all entries. Not made here.

    Raises:
        MachineError: this user has no place to keep anything.
    """
    return cache_folder() / "prepared"


def key_of(content: str, model: str, settings: Any) -> str:
    """Name of the entry.

    Args:
        content: Digest of the user's data.
        model: Digest of what the model's directory says about tokens.
        settings: All settings that change what is prepared; JSON.
    """
    parts = [content, model, settings, code_digest(), [version(name) for name in LIBRARIES]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


@cache
def code_digest() -> str:
    """Of our own code that turns rows into tokens: another version of it prepares anew."""
    room = Path(__file__).parent
    return files_digest(sorted(room.glob("*.py")))


def files_digest(files: list[Path]) -> str:
    """Of the names and contents of files."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{file_digest(path)}\0".encode())
    return digest.hexdigest()


def model_digest(model: Path) -> str:
    """Of everything in a model's directory but its weights: tokenizer, template, sizes."""
    return files_digest(sorted(each for each in model.iterdir() if each.is_file() and each.suffix not in WEIGHTS))


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(key: str) -> Facts | None:
    """The entry of this name, if there is a whole one; it counts as used now."""
    entry = folder() / key
    try:
        seal = json.loads((entry / SEAL).read_text(encoding="utf-8"))
        facts = Facts.read(entry)
        if not all(_as_sealed(entry / name, mark) for name, mark in seal.items()):
            return None
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    with suppress(OSError):
        os.utime(entry / SEAL)
    return facts


def _as_sealed(path: Path, mark: dict[str, Any]) -> bool:
    """Whether a file is what was written. Its content is read only where its time says that it was touched."""
    stat = path.stat()
    if stat.st_size != mark["size"]:
        return False
    return bool(stat.st_mtime_ns == mark["time_ns"] or file_digest(path) == mark["sha256"])


@contextmanager
def making(key: str) -> Iterator[Path]:
    """A scratch folder for an entry, while nobody else makes the same; `publish` it inside.

    Raises:
        MachineError: it cannot be kept there.
    """
    place = folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(place / f".{key}.lock"),
            tempfile.TemporaryDirectory(dir=place, prefix=".making-", ignore_cleanup_errors=True) as scratch,
        ):
            yield Path(scratch)
    except OSError as error:
        reason = error.strerror or error
        raise MachineError(
            f"cannot keep the prepared data in {place}: {reason}; XDG_CACHE_HOME=FOLDER puts them elsewhere"
        ) from error


def publish(key: str, scratch: Path, facts: Facts) -> Facts:
    """Give a finished entry its name, in one step; a damaged one of that name goes.

    Raises:
        OSError: the disk does not take it.
    """
    made, entry = scratch / "entry", folder() / key
    facts.write(made / MANIFEST)
    write_json(made / SEAL, {path.name: _mark(path) for path in sorted(made.iterdir())})
    if entry.exists():
        entry.rename(scratch / "damaged")  # who reads it has it open, and reads on
    made.rename(entry)
    _forget_old()
    return Facts.read(entry)


def _mark(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    stat = path.stat()
    return {"size": stat.st_size, "time_ns": stat.st_mtime_ns, "sha256": file_digest(path)}


def _forget_old() -> None:
    """Delete what no run has used for long, and what a process that was killed has left."""
    for entry in folder().iterdir():
        with suppress(OSError):
            used = entry / SEAL if (entry / SEAL).exists() else entry
            if time.time() - used.stat().st_mtime < KEPT_S:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.suffix == ".lock":
                entry.unlink()
