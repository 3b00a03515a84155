"""The hub's journal on disk: what is appended is there for the next hub, and a full disk costs nobody anything."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest

from tests.support import hub_plan
from tsugi_kpool.core.journal import Entry, encode_entry, parse
from tsugi_kpool.core.messages import AdapterFacts, Hello, Lease, Reduced
from tsugi_kpool.core.records import Joined, Leased, RoundReduced
from tsugi_kpool.errors import MachineError
from tsugi_kpool.sideband.hub.journal import RETRY_S, Journal

JOINED = Joined(Hello(1, 0, "i", "h", 1, "c0ffee", "l"))


def lease(number: int) -> Leased:
    return Leased(0, Lease(number, number - 1, number))


class Opened:
    """A journal with the hub that goes on from it, and what it has told."""

    def __init__(self, path: Path) -> None:
        self.told: list[str] = []
        self.journal = Journal(path, lambda told: self.told.append(told.name))
        self.hub = self.journal.open(hub_plan(), 100.0)

    def append(self, records, at_s: float, now_s: float) -> None:
        """What the hub decides in one turn is noted and flushed."""
        self.journal.note(records, at_s)
        self.journal.flush(now_s)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "hub.journal"


@pytest.fixture
def full_disk(monkeypatch):
    """Call it to let the disk run full after so many bytes, and again to make room."""
    write, room = os.pwrite, [1 << 60]

    def pwrite(file, data, offset):
        taken = min(len(data), room[0])
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= taken
        return write(file, data[:taken], offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    return lambda after_bytes: room.__setitem__(0, after_bytes)


def test_what_is_appended_is_there_for_the_next_hub(path):
    first = Opened(path)
    assert not first.hub.resumed
    first.append([JOINED, lease(1)], 3.0, 103.0)
    first.append([lease(2)], 5.0, 105.0)
    second = Opened(path)
    assert second.hub.resumed
    assert second.hub.members[0].hello == JOINED.hello
    assert second.hub.leases.issued == 2
    assert second.hub.started_s == 95.0, "the run is 5 s old, not counting the time without a hub"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_torn_last_record_is_cut_off_and_written_over(path):
    Opened(path).append([JOINED, lease(1), lease(2)], 1.0, 101.0)
    path.write_bytes(path.read_bytes()[:-9])
    again = Opened(path)
    assert again.hub.leases.issued == 1
    again.append([lease(2)], 2.0, 102.0)
    assert Opened(path).hub.leases.issued == 2


def test_what_an_earlier_version_said_of_a_round_and_nobody_reads_any_more_is_skipped():
    """A round's facts of an adapter had two positions more."""
    reduced = Reduced(2, 0, "i", 1, 1, "d", 0.1, 9, (1,), 0.0, 0.0, ((4, 0.5, 0.25, 1.0),))  # type: ignore[arg-type]
    (entry,) = parse(encode_entry(Entry(1.0, RoundReduced(reduced)))[0]).entries
    assert entry.record == RoundReduced(msgspec.structs.replace(reduced, adapters=(AdapterFacts(4, 0.5),)))


def test_a_damaged_journal_is_one_clear_error(path):
    Opened(path).append([JOINED, lease(1)], 1.0, 101.0)
    path.write_bytes(path.read_bytes().replace(b"c0ffee", b"c0ffed", 1))
    with pytest.raises(MachineError, match=r"cannot go on from .*hub.journal: line 1 \(byte 0\) is damaged"):
        Opened(path)


def test_a_journal_that_cannot_be_made_is_one_clear_error(tmp_path):
    with pytest.raises(MachineError, match=r"cannot keep a journal at .*: No such file or directory"):
        Opened(tmp_path / "nowhere" / "hub.journal")


def test_a_full_disk_is_told_once_and_made_up_for_when_there_is_room(path, full_disk):
    opened = Opened(path)
    opened.append([JOINED], 1.0, 101.0)
    full_disk(30)
    for number in range(1, 5):
        opened.append([lease(number)], float(number), 101.0 + number)
    assert opened.told == ["journal_behind"]
    full_disk(1 << 60)
    opened.journal.retry(105.0 + RETRY_S)
    assert opened.told == ["journal_behind", "journal_whole"]
    assert Opened(path).hub.leases.issued == 4


def test_no_hub_goes_on_from_a_journal_that_a_full_disk_kept_behind(path, full_disk):
    opened = Opened(path)
    full_disk(0)
    opened.append([JOINED], 1.0, 101.0)
    with pytest.raises(MachineError, match="lacks the hub's newest records: the disk was full"):
        Opened(path)


def test_a_journal_that_was_removed_while_the_disk_was_full_raises_nothing(path, full_disk):
    opened = Opened(path)
    path.unlink()
    full_disk(0)
    opened.append([JOINED], 1.0, 101.0)
    full_disk(1 << 60)
    opened.journal.retry(101.0 + RETRY_S)
    assert opened.told == ["journal_behind"]


def test_a_journal_whose_folder_has_gone_is_kept_in_memory_until_it_is_back(path):
    opened, away = Opened(path), path.parent.with_name("away")
    path.parent.rename(away)
    opened.append([JOINED], 1.0, 101.0)
    assert opened.told == ["journal_behind"]
    away.rename(path.parent)
    opened.journal.retry(101.0 + RETRY_S)
    assert opened.told == ["journal_behind", "journal_whole"]
    assert 0 in Opened(path).hub.members
