"""What has come from another machine is looked into before it counts: a right hash says who has made it, not that it
is of any use. Without torch.

A checkpoint's anchors are compared with what the fleet's members have agreed on, where a digest of theirs covers
nothing else: then a giver cannot put others in their place.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from tsugi_kpool.codec.coding import Floats
from tsugi_kpool.core.checkpoint import ANCHORS
from tsugi_kpool.core.settings import Mode
from tsugi_kpool.errors import LaunchError
from tsugi_kpool.exchange.process import ANCHOR
from tsugi_kpool.exchange.reduction import LEFT, left_of

FLEET = "fleet."
"""Begins the names of the fleet's moments, as engine.checkpoint_parts has them, which needs torch."""
OF_A_REPLICA = ("own.", "rng.", "owed.")
"""Begin the names of what is a replica's own: moments, random state, residuals."""
READABLE = {"F16", "F32", "F64"}
"""Numbers that numpy reads; others are looked at no further than their sizes."""
CONFIG, FIELDS = "adapter_config.json", {"peft_type": str, "r": int}
"""What PEFT needs of an adapter to load it."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Expected:
    """What the run says of a checkpoint's files."""

    adapters: int
    """N: the anchors' rows."""
    mode: str = Mode.LOCAL
    digests: tuple[tuple[tuple[int, ...], str], ...] = ()
    """Adapters, and the SHA-256 of their anchors."""
    like: Path | None = None
    """An earlier checkpoint's anchors, which have the same size."""


def check_checkpoint(folder: Path, names: list[str], expected: Expected) -> None:
    """Look into the files of a checkpoint that has come.

    Args:
        folder: Where they are.
        names: Theirs.
        expected: What the run says of them.

    Raises:
        LaunchError: a replica could not go on from them; names the file, and what is wrong with it.
        OSError: the disk does not give them.
    """
    for name in names:
        with _opened(folder / name) as file:
            if name == ANCHORS:
                _check_anchors(file, expected)
            else:
                _check_names(file, name, set(), OF_A_REPLICA)
                _check_numbers(file, name, np.isnan)  # a moment may be infinite: then its number stands still
                if not any(math.prod(file.get_slice(each).get_shape()) for each in _names(file)):
                    raise LaunchError(f"{name} has nothing in it")  # a replica has a random state at least


def check_adapter(folder: Path) -> None:
    """Look into the files of an adapter that has come.

    Raises:
        LaunchError: PEFT could not load it; names the file, and what is wrong with it.
        OSError: the disk does not give them.
    """
    for path in sorted(folder.glob("*.json")):
        _read_json(path)
    facts = _read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    for field, kind in FIELDS.items():
        if not isinstance(facts.get(field), kind):
            raise LaunchError(f"{CONFIG} has no {field}")
    if (rank := facts["r"]) is True or rank < 1:  # False is 0
        raise LaunchError(f"{CONFIG} has r={json.dumps(rank)}, which is no rank: 1 is the least")
    for path in sorted(folder.glob("*.safetensors")):
        with _opened(path) as file:
            _check_numbers(file, path.name, _not_finite)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise LaunchError(f"{path.name} is no JSON: {str(error)[:80]}") from error
    if path.name == CONFIG and not isinstance(found, dict):
        raise LaunchError(f"{path.name} has no fields")
    return found if isinstance(found, dict) else {}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open safetensors: their header is JSON, and its types, shapes and offsets add up to the file's size."""
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, ValueError, MemoryError) as error:  # numpy refuses shapes that the header may have
        raise LaunchError(f"{path.name} is no safetensors: {str(error)[:120]!r}") from error


def _names(file: Any) -> list[str]:
    return list(file.keys())  # it is no mapping


def _check_names(file: Any, name: str, exact: set[str], prefixes: tuple[str, ...]) -> None:
    strange = next((each for each in _names(file) if each not in exact and not each.startswith(prefixes)), None)
    if strange is not None:
        raise LaunchError(f"{name} has {strange[:80]!r}, which is no part of it")


def _not_finite(values: Floats) -> Any:
    return ~np.isfinite(values)


def _check_numbers(file: Any, name: str, bad: Callable[[Floats], Any]) -> None:
    """One number that is none spoils whatever begins from it."""
    for each in _names(file):
        if file.get_slice(each).get_dtype() in READABLE and bad(file.get_tensor(each)).any():
            raise LaunchError(f"{name} has values in {each[:80]!r} that are no numbers")


def _check_anchors(file: Any, expected: Expected) -> None:
    names = _names(file)
    _check_names(file, ANCHORS, {ANCHOR, LEFT}, (FLEET,) if expected.mode == Mode.GRADIENT else ())
    if ANCHOR not in names:
        raise LaunchError(f"{ANCHORS} has no {ANCHOR!r}")
    anchor = file.get_slice(ANCHOR)
    shape, wanted = anchor.get_shape(), _shape_of(expected)
    fits = len(shape) == 2 and shape[0] == wanted[0] and shape[1] == (wanted[1] or shape[1]) > 0
    if not fits or anchor.get_dtype() != "F32":
        shown = f"[{wanted[0]}, {wanted[1] or 'P'}] of F32"
        raise LaunchError(f"{ANCHORS} has anchors {shape} of {anchor.get_dtype()}, this run's are {shown}")
    _check_numbers(file, ANCHORS, _not_finite)
    if LEFT in names:
        left = file.get_slice(LEFT)
        if (kind := left.get_dtype()) != "U8":
            raise LaunchError(f"{ANCHORS} has {kind} in {LEFT!r}, not U8")
        try:
            left_of(file.get_tensor(LEFT), shape[1])
        except ValueError as error:
            raise LaunchError(f"{ANCHORS}: {error}") from error
        if (rows := left.get_shape()[0]) != shape[0]:
            raise LaunchError(f"{ANCHORS} has {rows} rows in {LEFT!r}, one for each of {shape[0]} adapters is wanted")
    for adapters, digest in expected.digests:
        if _DIGEST.fullmatch(digest) and _sha256(anchor, adapters) != digest:
            named = ", ".join(map(str, adapters[:8]))
            raise LaunchError(f"{ANCHORS} has other anchors of adapters {named} than the fleet has agreed on")


def _sha256(rows: Any, adapters: tuple[int, ...]) -> str:
    """Return the digest of these adapters' anchors, as engine.update.sha256 makes it."""
    digest = hashlib.sha256()
    for adapter in adapters:
        digest.update(np.ascontiguousarray(rows[adapter]).data)
    return digest.hexdigest()


def _shape_of(expected: Expected) -> tuple[int, int | None]:
    """Return the shape of the run's anchors; P is not known before there is a checkpoint."""
    if expected.like is not None:
        try:
            with safe_open(expected.like, framework="numpy") as file:
                return expected.adapters, file.get_slice(ANCHOR).get_shape()[1]
        except (OSError, SafetensorError, IndexError):
            pass  # it is looked at by whoever goes on from it
    return expected.adapters, None
