"""The checkpoint that a run goes on from, given to machines that join: one of them may have to begin the fleet."""

from __future__ import annotations

from pathlib import Path

from tsugi_cli.record.atomic import write_json
from tsugi_cli.record.resumed import resumed_of
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.checkpoint import (
    ANCHORS,
    MANIFEST,
    BadCheckpoint,
    FileFacts,
    Manifest,
    decode,
    encode,
    folder_name,
    part_name,
    stand_in,
)
from tsugi_kpool.errors import LaunchError

RESUMED = "resumed/"
"""Stands before the names of its files."""
MOST_MANIFEST = 1 << 20
"""Bytes: a manifest of a thousand replicas has a tenth of it."""


def resumed_files(paths: RunPaths) -> dict[str, Path]:
    """Return the files that machines which join are given, by name; none when the run began from the start, or when a
    newer checkpoint has taken the place of this one, which then nobody needs."""
    resumed = resumed_of(paths)
    if resumed is None:
        return {}
    folder = paths.checkpoints / resumed.checkpoint
    found = {RESUMED + name: folder / name for name in (MANIFEST, *resumed.manifest.files)}
    return found if all(path.exists() for path in found.values()) else {}


def read_manifest(data: bytes) -> Manifest:
    """Read the manifest that a hub has given.

    Raises:
        LaunchError: it is none.
    """
    try:
        return decode(data)
    except BadCheckpoint as error:
        raise LaunchError(f"the hub's run goes on from a checkpoint that cannot be: {error}") from error


def wanted_of(manifest: Manifest, replica: int) -> dict[str, FileFacts]:
    """Return the files that this replica begins from: the anchors, and the state of an optimizer if there is one."""
    whose = stand_in(replica, manifest.parts)
    names = [ANCHORS] if whose is None else [ANCHORS, part_name(whose)]
    return {name: manifest.files[name] for name in names}


def folder_of(paths: RunPaths, manifest: Manifest) -> Path:
    """Return where the files go on a machine that joins."""
    return paths.checkpoints / folder_name(manifest.version)


def note(paths: RunPaths, manifest: Manifest) -> None:
    """Write down, for this machine's worker, what the run goes on from. The hub's own paths say nothing here."""
    facts = {"parent": str(paths.root), "checkpoint": folder_name(manifest.version), "repeats": 0}
    write_json(paths.resumed, facts | {"manifest": encode(manifest).decode()})
