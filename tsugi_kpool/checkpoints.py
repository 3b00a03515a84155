"""The folder of a run's checkpoints: each is whole or absent, the newest valid one counts. No torch here.

A checkpoint is put together in a hidden folder and renamed once its manifest is written. A crash in between leaves a
hidden folder, which the next success deletes.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .core.checkpoint import (
    MANIFEST,
    BadCheckpoint,
    Manifest,
    begun_before,
    best,
    decode,
    encode,
    folder_name,
    superfluous,
    version_of,
)
from .durable import facts_of, flush_folder, write_file
from .foreign import read_plain


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that verifies."""

    path: Path
    manifest: Manifest


@dataclass(frozen=True)
class Found:
    """What a folder of checkpoints holds."""

    newest: Checkpoint | None
    skipped: tuple[tuple[str, str], ...]
    """(name, reason) of newer ones that do not verify."""


class Store:
    """Owns a folder of checkpoints: one process writes to it.

    Args:
        root: `checkpoints` of a run directory; made when it is needed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def scratch(self, name: str) -> Path:
        """Where the files of a checkpoint are put together. Not made here."""
        return self.root / f".{name}.tmp"

    def coming(self, name: str) -> Path:
        """Where files of a checkpoint lie that another machine has not given whole yet. Not made here."""
        return self.root / f".{name}.coming"

    def open(self, name: str) -> Path:
        """Make an empty folder to put a checkpoint together in.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        path = self.scratch(name)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def finish(self, name: str, manifest: Manifest) -> Checkpoint:
        """Make a checkpoint visible: its files are there and flushed, the manifest is written here.

        Raises:
            OSError: the disk is full or cannot be written; nothing new is visible.
        """
        scratch, target = self.scratch(name), self.root / folder_name(manifest.version)
        sizes = {file: (scratch / file).stat().st_size for file in manifest.files}
        wrong = [file for file, size in sizes.items() if size != manifest.files[file].bytes]
        if wrong:
            raise OSError(f"{', '.join(wrong)} is not as long as its writer said")
        # Every step is on the medium before the next: after a power cut no visible manifest may name files that are
        # not there.
        write_file(scratch / MANIFEST, encode(manifest))
        flush_folder(scratch)
        _replace(scratch, target)
        flush_folder(self.root)
        return Checkpoint(target, manifest)

    def rewrite(self, checkpoint: Checkpoint, manifest: Manifest) -> Checkpoint:
        """Give a checkpoint another manifest, in one step.

        Raises:
            OSError: the disk is full or cannot be written; the old one stands.
        """
        scratch = checkpoint.path / f".{MANIFEST}.tmp"
        write_file(scratch, encode(manifest))
        scratch.replace(checkpoint.path / MANIFEST)
        flush_folder(checkpoint.path)
        return Checkpoint(checkpoint.path, manifest)

    def discard(self, name: str) -> None:
        """Leave a checkpoint unfinished."""
        shutil.rmtree(self.scratch(name), ignore_errors=True)

    def sweep(self, before: int | None = None, but: Collection[str] = ()) -> None:
        """Delete what unfinished checkpoints have left behind.

        Args:
            before: Only what was begun before this version of the hub's; None: everything.
            but: Names of those that are still being written.
        """
        for path in self.root.glob(".*"):
            name = path.name.removeprefix(".").removesuffix(".tmp").removesuffix(".coming")
            if name not in but and begun_before(name, before):
                shutil.rmtree(path, ignore_errors=True)

    def prune(self, keep: int, awaited: int | None = None) -> list[str]:
        """Delete all but the newest `keep`, the best and the one whose evaluation is `awaited`; returns the names of
        those deleted."""
        found = {}
        for version, path in self._folders():
            try:
                found[version] = read_manifest(path)
            except BadCheckpoint:
                continue  # somebody may want to look at it
        names = [folder_name(version) for version in superfluous(found, keep, awaited)]
        for name in names:
            # Under another name first: one that is half deleted must not look like a checkpoint.
            (self.root / name).rename(self.root / f".{name}.old")
            shutil.rmtree(self.root / f".{name}.old", ignore_errors=True)
        return names

    def of(self, version: int) -> Checkpoint | None:
        """The checkpoint of this version, as its manifest says; None when there is none that can be read."""
        for number, path in self._folders():
            if number == version:
                with suppress(BadCheckpoint):
                    return Checkpoint(path, read_manifest(path))
        return None

    def best(self) -> Checkpoint | None:
        """The one with the lowest evaluation loss; None while none has been evaluated."""
        found = [each for version, _ in self._folders() if (each := self.of(version)) is not None]
        evaluated = {each.manifest.version: each for each in found if each.manifest.eval_loss is not None}
        version = best({number: each.manifest for number, each in evaluated.items()})
        return None if version is None else evaluated[version]

    def newest(self) -> Found:
        """The newest checkpoint that verifies, and why newer ones do not."""
        skipped: list[tuple[str, str]] = []
        for _, path in sorted(self._folders(), reverse=True):
            try:
                return Found(verified(path), tuple(skipped))
            except BadCheckpoint as error:
                skipped.append((path.name, str(error)))
        return Found(None, tuple(skipped))

    def adopt(self, path: Path) -> Checkpoint:
        """Make another run's checkpoint one of ours: linked where the file system allows it, else copied.

        It is verified here, after that: before, its owner could still put something else in its place.

        Raises:
            OSError: the disk is full or cannot be written.
            BadCheckpoint: it does not verify.
        """
        manifest, name = read_manifest(path), path.name
        scratch = self.open(name)
        try:
            for file, facts in manifest.files.items():
                _link_or_copy(path / file, scratch / file, facts.bytes)
            write_file(scratch / MANIFEST, encode(manifest))
            _verify_files(scratch, manifest)
        except (OSError, BadCheckpoint):
            self.discard(name)
            raise
        flush_folder(scratch)
        target = self.root / name
        _replace(scratch, target)
        flush_folder(self.root)
        return Checkpoint(target, manifest)

    def _folders(self) -> list[tuple[int, Path]]:
        try:
            entries = list(self.root.iterdir())
        except OSError:
            return []
        numbered = [(version_of(path.name), path) for path in entries]
        return [(version, path) for version, path in numbered if version is not None and _is_folder(path)]


def read_manifest(path: Path) -> Manifest:
    """A checkpoint's manifest; its other files are not looked at.

    Raises:
        BadCheckpoint: there is none, it is not whole, says what cannot be, or is another checkpoint's.
    """
    if path.is_symlink():
        raise BadCheckpoint("it is a link, which is not followed")
    try:
        manifest = decode(read_plain(path / MANIFEST))
    except FileNotFoundError as error:
        raise BadCheckpoint(f"it has no {MANIFEST}") from error
    except OSError as error:
        raise BadCheckpoint(f"{MANIFEST} cannot be read: {error.strerror}") from error
    if folder_name(manifest.version) != path.name:
        raise BadCheckpoint(f"its manifest is that of {folder_name(manifest.version)}")
    return manifest


def verified(path: Path) -> Checkpoint:
    """A checkpoint whose every byte is as its writer left it.

    Raises:
        BadCheckpoint: it is not; says which file and why.
    """
    manifest = read_manifest(path)
    _verify_files(path, manifest)
    return Checkpoint(path, manifest)


def _verify_files(path: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        try:
            found = facts_of(path / name, expected.bytes)
        except OSError as error:
            raise BadCheckpoint(f"{name} cannot be read: {error.strerror}") from error
        if found.bytes != expected.bytes:
            raise BadCheckpoint(f"{name} has {found.bytes} bytes, not {expected.bytes}")
        if found.sha256 != expected.sha256:
            raise BadCheckpoint(f"{name} was changed: its SHA-256 does not fit")


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _replace(scratch: Path, target: Path) -> None:
    """Rename a folder over another one; should we die in between, the older checkpoints are still there."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    scratch.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _link_or_copy(source: Path, target: Path, most_bytes: int) -> None:
    """Linked is what is ours alone to change; what others can write to is copied."""
    if (facts := source.lstat()).st_uid == os.geteuid() and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:
            pass  # a file system without links, or another one
        else:
            return
    write_file(target, read_plain(source, most_bytes))
