"""The hub counts micro-batches that were left out, and ends the run when there are too many."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.test_quarantine import Table
from tsugi_cli.config.training import allowed
from tsugi_cli.console.events import event_text
from tsugi_cli.launch.failure import failure_of
from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.hub.skipping import LISTED, too_many
from tsugi_kpool.core.messages import Discarded
from tsugi_kpool.errors import ExitCode


@pytest.mark.parametrize(
    ("setting", "micro_batches", "number"),
    [(0.0, 1000, 0), (0.001, 100, 1), (0.001, 5000, 5), (0.5, 10, 5), (1.0, 10, 1), (30.0, 10, 30)],
)
def test_a_share_of_the_run_or_a_number(setting, micro_batches, number):
    assert allowed(setting, micro_batches) == number


def left_out(table: Table, seq: int, replica: int) -> list:
    reason = f"mine.jsonl:{seq} (sample {seq})"
    return table.hub.receive(Discarded(seq, replica, f"i{replica}", reason, 7, skipped=1), table.now_s)


def test_the_fleets_are_counted_together_and_one_too_many_ends_the_run_with_the_list():
    table = Table(2)
    table.hub.plan = replace(table.hub.plan, bad_batches=2)
    (told,) = table.told(left_out(table, 1, 0), "skipped")
    assert "leaves out what has no finite loss: mine.jsonl:1 (sample 1)" in event_text({"event": "skipped", **told})
    left_out(table, 2, 1)
    assert table.told(left_out(table, 2, 1), "skipped") == [], "its answer was lost: it comes again"
    assert table.hub.stage is FleetStage.TRAINING
    assert table.hub.strikes == {}, "nothing was thrown away"
    (failed,) = table.told(left_out(table, 3, 0), "failed")
    assert table.hub.stage is FleetStage.FAILED
    for place in ("mine.jsonl:1", "mine.jsonl:2", "mine.jsonl:3", "train.max_bad_batches allows 2"):
        assert place in failed["reason"]
    error = failure_of(None, table.hub.failure)
    assert error is not None
    assert error.exit_code == ExitCode.TRAINING


def test_a_long_list_is_cut():
    text = too_many(30, 5, [f"mine.jsonl:{each}" for each in range(30)])
    assert text.splitlines()[-1] == f"and {30 - LISTED} more"
    assert len(text.splitlines()) == LISTED + 2
