"""The journal on disk, a write-ahead log: appended and flushed before anything that follows from it is sent."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tsugi_kpool.core.effects import HubPlan, Told
from tsugi_kpool.core.events import JournalBehind, JournalWhole
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.replay import began, replay
from tsugi_kpool.core.journal import BadJournal, Entry, encode_entries, encode_entry, parse
from tsugi_kpool.core.records import AnyRecord
from tsugi_kpool.durable import check_leads_to, flush_folder
from tsugi_kpool.errors import MachineError
from tsugi_kpool.foreign import check_plain

RETRY_S = 1.0
"""Period of trying again to write a journal."""
MOST_BYTES = 1 << 32
"""Largest journal that is read: hours of a thousand replicas are a hundredth of it."""
BEHIND = ".behind"
"""Suffix of a journal that lacks records. To rename needs no space, and no hub continues from such a journal."""


class Journal:
    """The journal of a hub; owned by the hub's thread.

    A full disk does not stop a run. What cannot be written is kept in memory, and written as soon as there is room.
    Until then the hub cannot be restarted: `tell` is called when that begins, and when it ends.

    Args:
        path: Made with mode 0600 if it is not there.
        tell: Called with its events; must not raise.
    """

    def __init__(self, path: Path, tell: Callable[[Told], None]) -> None:
        self.path, self._tell = path, tell
        self._pending = bytearray()
        self._failed_s: float | None = None
        self._file = -1
        self._whole_bytes = self._chain = 0

    @property
    def behind(self) -> bool:
        """Whether some records could not be written yet."""
        return self._failed_s is not None

    def open(self, plan: HubPlan, now_s: float) -> Hub:
        """Return the hub that continues from this journal, or a new one when there is none.

        Raises:
            MachineError: it cannot be read or made, is damaged, of another run, or lacks what a full disk had
                no room for.
        """
        if self._renamed.exists():
            raise MachineError(
                f"{self._renamed} lacks the hub's newest records: the disk was full when the hub ended; "
                "this run cannot be gone on with"
            )
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._file = os.open(self.path, flags, 0o600)
            check_plain(self._file, self.path)
            return self._begin(plan, now_s)
        except BadJournal as error:
            self.close()
            raise MachineError(f"the hub cannot go on from {self.path}: {error}") from error
        except OSError as error:
            self.close()
            raise MachineError(f"the hub cannot keep a journal at {self.path}: {error.strerror}") from error

    @property
    def waiting(self) -> bool:
        """Whether some records are noted and not on the medium, though there is room."""
        return bool(self._pending) and not self.behind

    def note(self, records: list[AnyRecord], at_s: float) -> None:
        """Note records, in this order. Nothing that follows from them may be sent before `flush`."""
        lines, self._chain = encode_entries((Entry(at_s, each) for each in records), self._chain)
        self._pending += lines

    def flush(self, now_s: float) -> None:
        """Write what is noted. Returns when it is on the medium, or kept in memory for lack of room. Never raises."""
        if not self.behind or now_s - (self._failed_s or 0.0) >= RETRY_S:
            self._write(now_s)

    def retry(self, now_s: float) -> None:
        """Try again to write what could not be written, if it is time."""
        if self._failed_s is not None and now_s - self._failed_s >= RETRY_S:
            self._write(now_s)

    def close(self) -> None:
        if self._file >= 0:
            if self.waiting:
                self._write(time.monotonic())
            os.close(self._file)
            self._file = -1

    @property
    def _renamed(self) -> Path:
        return self.path.with_name(self.path.name + BEHIND)

    def _begin(self, plan: HubPlan, now_s: float) -> Hub:
        with open(self._file, "rb", closefd=False) as file:
            size = os.fstat(self._file).st_size
            if size > MOST_BYTES:
                raise BadJournal(f"it has more than {MOST_BYTES} bytes")
            parsed = parse(file.read(size))
        self._whole_bytes, self._chain = parsed.whole_bytes, parsed.chain
        # Cut off a torn last line, which nothing followed from: behind it the next record would be damaged, too.
        os.ftruncate(self._file, parsed.whole_bytes)
        if parsed.entries:
            return replay(plan, parsed.entries, now_s)
        line, self._chain = encode_entry(began(plan))
        self._put(line)
        flush_folder(self.path.parent)
        return Hub(plan, now_s)

    def _write(self, now_s: float) -> None:
        try:
            # A file that somebody has deleted or replaced can still be written, but no hub would find it again.
            check_leads_to(self._renamed if self._renamed.exists() else self.path, self._file)
            self._put(self._pending)
            self._pending.clear()
            if self.behind:
                # Its usual name again only when all records are on the medium: under that name a journal lacks
                # nothing.
                if self._renamed.exists():  # a disk that was read-only let nobody rename it
                    self._renamed.replace(self.path)
                flush_folder(self.path.parent)
                self._failed_s = None
                self._tell(JournalWhole())
        except OSError as error:
            self._note_failure(error, now_s)

    def _put(self, data: bytes | bytearray) -> None:
        """Append the data, or leave the file as it was.

        Raises:
            OSError: there is no room, or no disk.
        """
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._file, data[done:], self._whole_bytes + done)
            os.fdatasync(self._file)
        except OSError:
            with suppress(OSError):
                # Half a line in the middle would damage the whole journal: the next attempt begins where this one
                # did.
                os.ftruncate(self._file, self._whole_bytes)
            raise
        self._whole_bytes += done

    def _note_failure(self, error: OSError, now_s: float) -> None:
        first, self._failed_s = self._failed_s is None, now_s
        with suppress(OSError):
            self.path.rename(self._renamed)
        if first:
            self._tell(JournalBehind(error.strerror or str(error)))
