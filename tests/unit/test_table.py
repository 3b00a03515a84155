"""The table of `tsugi sideband status`: few lines above it, and who is slow below."""

from __future__ import annotations

from datetime import datetime

import msgspec
import pytest
from rich.cells import cell_len

from tests.pictures import drawn, fleet, replica
from tsugi_cli.console.table import page, table
from tsugi_kpool.core.messages import Slowness

NOW = datetime(2026, 10, 5, 14, 3, 7)


def test_the_table_alone() -> None:
    lines = drawn(table(fleet(64)), 120)
    assert len(lines) == 64 + 4
    assert "newest steps" not in lines[3]  # who looks once knows no past


@pytest.mark.parametrize("run", ["tools", "a-rather-long-name-of-a-run-" * 5, "長い名前" * 20])
@pytest.mark.parametrize("samples", [448, 10**9])
def test_the_summary_above_the_table_takes_two_lines_of_80_columns(run: str, samples: int) -> None:
    status = fleet(run=run, samples_done=samples, samples_total=samples, stage="gathering", tokens_per_s=123_456.0)
    lines = drawn(table(msgspec.structs.replace(status, stage="training")))
    assert lines[0].startswith(run[:4])
    assert f"training   {samples:,}/{samples:,} samples" in lines[0]
    assert lines[1] == "loss 1.234   fleet 123k tok/s   goodput 99%   version 12"
    assert (lines[2], lines[3].split()[0]) == ("", "#")
    assert max(map(cell_len, lines)) <= 80
    assert drawn(table(status))[0].endswith("gathering   waiting for replicas: 2 of 2 joined")


@pytest.mark.parametrize("slow", [0, 1, 5, 64])
def test_a_watched_page_fits_its_window_however_many_are_slow(slow: int) -> None:
    facts = Slowness(3.8, 61.0, 0.41, 1.56, "step", "compute", ("the training thread slept 68 % of the time",))
    rows = tuple(replica(i, slowness=facts if i < slow else None) for i in range(64))
    status = fleet(replicas=rows, health="degraded", health_reasons=("x",))
    for width, height in ((80, 24), (160, 50)):
        lines = drawn(page(status, NOW, height - 1), width)
        assert len(lines) <= height
        text = " ".join("".join(f"{line} " for line in lines).split())
        assert ("3.8x slow since 14:02:06 (step 0.41 s → 1.56 s)" in text) == bool(slow)
        assert (f"and {slow - 6} more" in text) == (slow > 6 and height == 50)


def test_on_a_pipe_every_replica_has_its_row() -> None:
    assert sum("training" in line for line in drawn(page(fleet(64), NOW), 80)) >= 64
