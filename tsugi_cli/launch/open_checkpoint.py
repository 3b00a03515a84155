"""A checkpoint whose files are being written, here or on another machine."""

from __future__ import annotations

from dataclasses import dataclass, field

from tsugi_kpool.core.checkpoint import ANCHORS, FileFacts, part_name
from tsugi_kpool.core.effects import CheckpointOrdered
from tsugi_kpool.core.messages import Saved


@dataclass
class OpenCheckpoint:
    """What the hub has ordered, and what members have reported of it."""

    ordered: CheckpointOrdered
    since_s: float
    files: dict[str, FileFacts] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    wanted: bool = False
    """Its files are fetched from another machine."""

    @property
    def first(self) -> int:
        """The member that writes for all."""
        return self.ordered.writer

    def note(self, saved: Saved) -> None:
        """Take in what a member says of a file."""
        if saved.error:
            self.errors[saved.file] = saved.error
        else:
            self.files[saved.file] = FileFacts(saved.bytes, saved.sha256)

    def missing(self, here: int) -> set[str]:
        """Return the files that nobody has reported yet; `here` replicas, the first ones, are on this machine."""
        writers = [each for each in self.ordered.members if each < here or each == self.first]
        return {ANCHORS, *map(part_name, writers)} - set(self.files)

    def away(self, here: int) -> list[str]:
        """Return the files that another machine has; none when the first member is here."""
        return [] if self.first < here else [ANCHORS, part_name(self.first)]
