"""What a resumed run began from, as its run directory has it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from tsugi_kpool.core.checkpoint import MOST, BadCheckpoint, Manifest, decode, folder_name, stand_in
from tsugi_kpool.errors import ConfigError
from tsugi_kpool.foreign import read_plain

from .run_dir import RunPaths


class _Facts(msgspec.Struct, frozen=True):
    """Content of `resumed.json`."""

    parent: str
    checkpoint: str
    repeats: int
    manifest: str
    """The manifest, with its own hash, as in a checkpoint."""


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run resumes."""

    parent: Path
    checkpoint: str
    manifest: Manifest
    repeats: int
    """Samples that the earlier run had trained on and that are not in the checkpoint."""
    skipped: tuple[tuple[str, str], ...] = ()
    lacking: tuple[str, ...] = ()
    """Keys that are missing in the earlier run's settings."""
    beyond: int = 0
    """Samples that the earlier run had trained on and that are no part of this one, which is shorter."""

    def text(self) -> str:
        """Return one line for the user."""
        manifest = self.manifest
        again = "1 sample is" if self.repeats == 1 else f"{self.repeats} samples are"
        return (
            f"resuming {self.parent} at {self.checkpoint}: version {manifest.version}, {manifest.samples} of "
            f"{manifest.samples_total} samples, {manifest.tokens} tokens; {again} trained on again"
        )

    def notes(self, replicas: int) -> list[str]:
        """Return notes for the user: what was skipped, and which of so many replicas begin without optimizer moments
        of their own."""
        found = [f"{self.parent}: {name} is skipped, it is not whole: {reason}" for name, reason in self.skipped]
        if self.lacking:
            found.append(f"{self.parent} has no {', '.join(self.lacking)} yet: the default is taken")
        if self.beyond:
            found.append(f"{self.beyond} samples that it had trained on lie beyond the end of this run: not counted")
        if self.manifest.mode != "local":
            return found
        parts = self.manifest.parts
        for replica in range(replicas):
            whose = stand_in(replica, parts)
            if whose != replica:
                begins = "none" if whose is None else f"that of replica {whose}"
                found.append(f"no optimizer state of its own for replica {replica}: it begins with {begins}")
        return found


def resumed_of(paths: RunPaths) -> Resumed | None:
    """Return what the run of an existing directory began from; None for a run from the start.

    Raises:
        ConfigError: what it says is not whole, or not said by a plain file.
    """
    try:
        facts = msgspec.json.decode(read_plain(paths.resumed), type=_Facts)
        manifest = decode(facts.manifest.encode())
        if facts.checkpoint != folder_name(manifest.version) or not 0 <= facts.repeats <= MOST:
            raise BadCheckpoint(
                f"it names {facts.checkpoint[:40]!r}, the manifest in it {folder_name(manifest.version)}"
            )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError([f"{paths.resumed} cannot be read: {error.strerror}"]) from error
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise ConfigError([f"{paths.resumed} is none of Tsugi's: {error}"]) from error
    return Resumed(Path(facts.parent), facts.checkpoint, manifest, facts.repeats)
