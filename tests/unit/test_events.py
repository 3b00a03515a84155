"""Events: every record has its own or deliberately none, and lines keep the names and fields that programs read."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import msgspec

from tests.support import hub_plan
from tsugi_cli.console import events as words
from tsugi_cli.console.events import event_text
from tsugi_kpool.core import events, journal, records
from tsugi_kpool.core.events import KINDS, Name
from tsugi_kpool.core.hub.changes import keep
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.messages import Slowness

ROOT = Path(__file__).resolve().parents[2]
LINES = """
joined replica host pid | seat_freed replica reason | generation generation members
fired round adapters reason pooled delayed_s delayed_for
committed round version seconds payload_bytes weights digest k
aborted round reason | left replica host reason again durable incarnation quarantined
discarded replica reason tokens strikes | parting replica | restarted replica times
quorum_lost live min_replicas timeout_s | quorum_back live | evaluated replica stage sums
sized replica micro_batch was period_s | slow replica factor since_s before_s after_s part cause evidence
recovered replica seconds step_s | link_recovered replica | drained
finished version | stopped version | interrupted | deserted version | failed replica reason
resumed version round | journal_behind reason | journal_whole | records_lost reason
checkpoint checkpoint version samples samples_total payload_bytes seconds
checkpoint_failed checkpoint reason | refused kind times in_all | note text
"""
"""What stands in events.jsonl of runs before events had classes. May grow; nothing may go."""
OFTEN_ABSENT = {("fired", "delayed_s"), ("fired", "delayed_for"), ("committed", "k"), ("left", "quarantined")}


def fields_of(kind: type[events.Event]) -> list[str]:
    return [field.name for field in msgspec.structs.fields(kind)]


def test_a_reader_of_earlier_lines_finds_every_name_and_field():
    for line in filter(None, (each.strip() for each in re.split(r"[|\n]", LINES))):
        name, *fields = line.split()
        assert set(fields) <= set(fields_of(KINDS[name])), name
        optional = {field.name for field in msgspec.structs.fields(KINDS[name]) if not field.required}
        assert {(name, field) for field in optional & set(fields)} <= OFTEN_ABSENT, "others stand in every line"


def test_a_line_leaves_out_what_says_nothing():
    fired = events.Fired(1, (0, 2), "count", 4)
    assert msgspec.json.decode(msgspec.json.encode(fired)) == {
        "event": "fired", "round": 1, "adapters": [0, 2], "reason": "count", "pooled": 4,
    }  # fmt: skip
    assert "delayed_s" in msgspec.structs.replace(fired, delayed_s=0.01).data
    assert events.Failed(None, "gone").data == {"replica": None, "reason": "gone"}, "no replica is a fact"


def test_every_name_has_its_class():
    assert {str(name) for name in Name} == set(KINDS)
    assert fields_of(events.Slow) == ["replica", *(field.name for field in msgspec.structs.fields(Slowness))]


UNMISTAKABLE = {
    Name.FIRED, Name.COMMITTED, Name.SEAT_FREED, Name.DISCARDED, Name.RESTARTED, Name.QUORUM_LOST, Name.QUORUM_BACK,
    Name.EVALUATED, Name.SIZED, Name.RECOVERED, Name.LINK_RECOVERED, Name.DESERTED, Name.JOURNAL_BEHIND,
    Name.JOURNAL_WHOLE, Name.RECORDS_LOST, Name.SINK_FAILED, Name.CHECKPOINT_FAILED,
}  # fmt: skip
"""Names that are no state or reason as well."""


def test_nobody_spells_an_events_name_but_its_class():
    spelt = [
        f"{path}: {node.value}"
        for top in ("tsugi_kpool", "tsugi_cli")
        for path in (ROOT / top).rglob("*.py")
        if path != ROOT / "tsugi_kpool" / "core" / "events.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in UNMISTAKABLE
    ]
    assert spelt == []


def test_the_console_has_words_for_every_event_and_names_only_fields_that_there_are():
    assert set(words._TEXTS) == set(KINDS) - {Name.SLOW}
    for name, text in words._TEXTS.items():
        assert set(re.findall(r"\{(\w+)\}", text)) <= set(fields_of(KINDS[name])), name
    assert event_text({"event": "of_a_newer_version", "replica": 1}) == "of_a_newer_version replica=1"


def test_what_is_kept_is_told_in_the_same_breath():
    hub = Hub(hub_plan(), 0.0)
    record = records.RunFailed("no disk", None)
    kept, told = keep(hub, record)
    assert (kept.record, told) == (record, events.Failed(None, "no disk"))


def test_a_journal_of_before_is_read():
    """Records that events are derived from have more fields now."""
    lines = [
        b'{"at_s": 1.0, "record": {"type": "Struck", "replica": 1}}',
        b'{"at_s": 1.0, "record": {"type": "SeatFreed", "replica": 1}}',
        b'{"at_s": 1.0, "record": {"type": "Recovered", "replica": 1}}',
        b'{"at_s": 1.0, "record": {"type": "Interrupted"}}',
    ]
    found = [type(msgspec.json.decode(line, type=journal.Entry).record) for line in lines]
    assert found == [records.Struck, records.SeatFreed, records.Recovered, records.Interrupted]


def test_a_run_that_no_replica_has_failed_names_none():
    failed = {"event": "failed", "reason": "no room"}
    assert event_text(failed | {"replica": None}) == "the run has failed: no room"
    assert event_text(failed | {"replica": 1}) == "replica 1 failed: no room"
