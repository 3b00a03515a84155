"""Injected faults: how they are written, and which of them holds at a moment."""

from __future__ import annotations

import pytest

from tsugi_cli.config.faults import FaultEntry, of_replica, parse, present


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("1:4.0", FaultEntry(1, 4.0)),
        ("0:4@20s", FaultEntry(0, 4.0, after_s=20.0)),
        ("0:4@1.5s", FaultEntry(0, 4.0, after_s=1.5)),
        ("12:1e1@30", FaultEntry(12, 10.0, after_steps=30)),
        ("1:4@", None),
        ("1:4@1.5", None),
        ("1:4@s", None),
        ("1:4@-2s", None),
        ("1:-4", None),
        ("1", None),
        ("a:4", None),
    ],
)
def test_what_is_written_is_what_is_read(text, fault):
    assert parse(text) == fault


def test_the_last_entry_whose_moment_has_come_holds():
    faults = of_replica(["1:4@20s", "0:9", "1:2@30", "1:1@40s"], 1)
    moments = [(0.0, 0), (20.0, 0), (25.0, 30), (40.0, 30)]
    assert [present(faults, seconds, steps, usual=1.0) for seconds, steps in moments] == [1.0, 4.0, 2.0, 1.0]
