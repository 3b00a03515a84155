"""The hub's journal in virtual time: flushed records survive a crash of the hub, noted ones do not."""

from __future__ import annotations

from collections.abc import Sequence

from tsugi_kpool.core.effects import HubPlan
from tsugi_kpool.core.hub.replay import began
from tsugi_kpool.core.journal import Entry, encode_entries, encode_entry, parse
from tsugi_kpool.core.records import AnyRecord

from .scenario import HubCrash


class Disk:
    """A journal as sideband.hub.journal keeps it, on a disk that is never full.

    Args:
        plan: The run's plan.
        crashes: Those that come with a record are found here, by the flush that they interrupt.
    """

    def __init__(self, plan: HubPlan, crashes: Sequence[HubCrash]) -> None:
        begun, self._chain = encode_entry(began(plan))
        self._journal = bytearray(begun)
        self._unwritten: list[Entry] = []
        self._noted: list[Entry] = []
        self._after_record = {crash.after_record: crash for crash in crashes if crash.after_record is not None}
        self.records = 0
        """Records on the medium, without the first one."""
        self.lost = 0
        """Records that were lost because they were only noted when the hub died."""

    @property
    def journal(self) -> bytearray:
        """The file's present content. Lines are encoded when somebody reads them, which is after a crash."""
        lines, self._chain = encode_entries(self._unwritten, self._chain)
        self._journal += lines
        self._unwritten.clear()
        return self._journal

    @property
    def waiting(self) -> bool:
        """Whether some records are noted and not on the medium."""
        return bool(self._noted)

    def note(self, records: Sequence[AnyRecord], at_s: float) -> None:
        """Note records, in this order. Nothing that follows from them may be sent before `flush`."""
        self._noted += [Entry(at_s, each) for each in records]

    def flush(self) -> HubCrash | None:
        """Write what is noted. A crash at one of these records loses the rest, and is returned."""
        noted, self._noted = self._noted, []
        for entry in noted:
            self.records += 1
            crash = self._after_record.pop(self.records, None)
            if crash is not None and crash.torn:
                journal = self.journal
                line, _ = encode_entry(entry, self._chain)
                journal.extend(line[: len(line) // 2])
            else:
                self._unwritten.append(entry)
            if crash is not None:
                return crash
        return None

    def reopen(self) -> list[Entry]:
        """Return what the next hub finds: all that was flushed, without a torn last line."""
        self.lost += len(self._noted)
        self._noted.clear()
        parsed = parse(bytes(self.journal))
        del self._journal[parsed.whole_bytes :]
        self._chain = parsed.chain
        return parsed.entries
