"""A checkpoint's manifest, which checkpoints are kept, and when the next one is due. Pure: no files here.

A checkpoint is a folder `v000123`, named by the rounds committed, with safetensors and a manifest. The manifest is
written last and holds the size and SHA-256 of every other file, and its own: a folder without a manifest that
verifies is no checkpoint (docs/design.md section 4, rule 5).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from .settings import Mode

SCHEMA = 1
MANIFEST = "manifest.json"
ANCHORS = "anchors.safetensors"
"""The fleet's own state: anchors, and the optimizer's moments in gradient mode."""
LATEST_DIGITS = 6
Ranges = tuple[tuple[int, int], ...]
"""Positions [start, stop) of the data order, in order, not touching each other."""
_NAME = re.compile(r"v(\d{6,18})", re.ASCII)
_PART = re.compile(r"replica(\d{1,9})\.safetensors", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
MOST = 2**53
"""Upper limit of every count of a run. Up to here floats are exact."""


class BadCheckpoint(ValueError):
    """This folder holds no complete checkpoint; the text says why."""


class FileFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a file of a checkpoint must look."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A checkpoint's facts. Numbers are of the whole run, the runs that it was resumed from included."""

    version: int
    """Rounds committed."""
    mode: str
    """`kpool.mode`, which says whose moments these are."""
    replicas: int
    done: Ranges
    """The data ledger: positions whose work is in these anchors, for every adapter."""
    samples_total: int
    tokens: int
    """Supervised tokens trained on."""
    fingerprint: str
    """Hash of the data: positions mean the same samples only while it is the same."""
    config_hash: str
    seed: int
    files: dict[str, FileFacts]
    clean: bool
    """Whether nothing was buffered anywhere: then a resumed run repeats nothing."""
    loss: float | None = None
    """The fleet's smoothed training loss."""
    eval_loss: float | None = None
    base: dict[str, float] = {}
    """What was measured before training began; see `summary.json`."""
    parent: str | None = None
    """The run directory that this run was resumed from."""
    trained: int = 0
    """Samples trained on, those that will be repeated included."""

    @property
    def samples(self) -> int:
        """Samples whose work is in these anchors."""
        return length(self.done)

    @property
    def repeats(self) -> int:
        """Samples that had been trained on and will be trained on again."""
        return max(0, self.trained - self.samples)

    @property
    def parts(self) -> list[int]:
        """Replicas whose own optimizer moments are in the checkpoint."""
        return sorted(int(found[1]) for name in self.files if (found := _PART.fullmatch(name)))


def part_name(replica: int) -> str:
    """The file of a replica's own moments."""
    return f"replica{replica}.safetensors"


def folder_name(version: int) -> str:
    """The checkpoint's folder."""
    return f"v{version:0{LATEST_DIGITS}d}"


def stand_in(replica: int, parts: Sequence[int]) -> int | None:
    """Return the replica whose optimizer moments this one starts from: its own if they were saved, else another's.
    None if none were saved."""
    if replica in parts or not parts:
        return replica if parts else None
    return parts[replica % len(parts)]


def scratch_name(version: int, final: bool) -> str:
    """Return the name under which a checkpoint is written before it is complete; `version` is the hub's."""
    return "final" if final else f"at{version}"


def begun_before(name: str, version: int | None) -> bool:
    """Return whether the checkpoint of this scratch name was begun before `version`; always true if that is None."""
    number = name.removeprefix("at")
    return version is None or (number.isdigit() and int(number) < version)


def sorted_names(names: Sequence[str]) -> list[str]:
    """Return the scratch names among these, by their versions; the run's last checkpoint comes after all others."""
    final = scratch_name(0, final=True)
    numbered = [(int(name[2:]), name) for name in names if name.startswith("at") and name[2:].isdecimal()]
    return [name for _, name in sorted(numbered)] + [name for name in names if name == final]


def version_of(name: str) -> int | None:
    """The version that a folder's name says; None when it is no checkpoint's."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def encode(manifest: Manifest) -> bytes:
    """A manifest as JSON, with the hash of itself: a flipped bit must not pass for another data ledger."""
    facts = msgspec.to_builtins(manifest)
    return json.dumps({"schema": SCHEMA, "sha256": _hash(facts), "manifest": facts}, indent=2).encode() + b"\n"


def decode(data: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        BadCheckpoint: it is not whole, or another version of Tsugi wrote it.
    """
    try:
        tree = json.loads(data)
        schema, expected, facts = tree["schema"], tree["sha256"], tree["manifest"]
        found = _hash(facts)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadCheckpoint(f"{MANIFEST} is not whole") from error
    if schema != SCHEMA:
        raise BadCheckpoint(f"{MANIFEST} has schema {json.dumps(schema)[:20]}, this version of Tsugi reads {SCHEMA}")
    if found != expected:
        raise BadCheckpoint(f"{MANIFEST} was changed: its own hash does not fit")
    try:
        manifest = msgspec.convert(facts, Manifest)
    except (msgspec.ValidationError, RecursionError) as error:
        raise BadCheckpoint(f"{MANIFEST}: {str(error)[:200]!r}") from error
    if wrong := _wrong(manifest):
        raise BadCheckpoint(f"{MANIFEST}: {wrong}")
    return manifest


def _wrong(manifest: Manifest) -> str | None:
    """Return the first impossible value of a manifest, in words, or None. A hash that fits proves nothing: anybody
    can compute one."""
    for name in ("version", "replicas", "samples_total", "tokens", "seed", "trained"):
        if not 0 <= getattr(manifest, name) <= MOST:
            return f"{name} must lie in [0, 2**53], found {getattr(manifest, name)!r:.40}"
    if manifest.mode not in tuple(Mode):
        return f"mode must be one of {', '.join(Mode)}, found {manifest.mode[:40]!r}"
    for name in ("fingerprint", "config_hash"):
        if not _SHA256.fullmatch(getattr(manifest, name)):
            return f"{name} is no SHA-256"
    return _wrong_done(manifest) or _wrong_files(manifest)


def _wrong_done(manifest: Manifest) -> str | None:
    """Return what is wrong with `done`, or None. Its ranges must be sorted, not empty, inside the run, and not
    adjacent."""
    before = -1
    for start, stop in manifest.done:
        shown = f"done has the range [{start!r:.20}, {stop!r:.20})"
        if start < 0 or stop > manifest.samples_total:
            return f"{shown}, outside of the run's {manifest.samples_total} samples"
        if start >= stop:
            return f"{shown}, which is empty"
        if start <= before:
            return f"{shown}, which does not come after the one before it"
        before = stop
    return None


def _wrong_files(manifest: Manifest) -> str | None:
    if ANCHORS not in manifest.files:
        return f"it names no {ANCHORS}"
    for name, facts in manifest.files.items():
        if "/" in name or name in (".", ".."):
            return f"it names a file elsewhere: {name[:80]!r}"
        if name != ANCHORS and not _PART.fullmatch(name):
            return f"it names a file that is none of a checkpoint's: {name[:80]!r}"
        if not 0 <= facts.bytes <= MOST or not _SHA256.fullmatch(facts.sha256):
            return f"size or SHA-256 of {name} cannot be"
    return None


def superfluous(found: Mapping[int, Manifest], keep: int, awaited: int | None = None) -> list[int]:
    """Versions that may be deleted: all but the newest `keep`, the best one, and the one whose evaluation is
    `awaited`."""
    newest = sorted(found)[-keep:]
    return sorted(set(found) - set(newest) - {best(found), awaited})


def best(found: Mapping[int, Manifest]) -> int | None:
    """Return the version with the lowest evaluation loss or, while none has been evaluated, the lowest training
    loss."""
    evaluated = {version: each.eval_loss for version, each in found.items() if each.eval_loss is not None}
    losses = evaluated or {version: each.loss for version, each in found.items() if each.loss is not None}
    return min(losses, key=lambda version: (losses[version], -version)) if losses else None


def due(now_s: float, newest_s: float, every_s: float) -> bool:
    """Whether it is time for the next periodic checkpoint; `every_s` of 0 means never."""
    return every_s > 0 and now_s - newest_s >= every_s


def length(ranges: Sequence[tuple[int, int]]) -> int:
    """Positions in these ranges."""
    return sum(stop - start for start, stop in ranges)


def _hash(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
