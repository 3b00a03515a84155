"""Small pictures and short numbers."""

from __future__ import annotations

import pytest

from tests.pictures import NAN
from tsugi_cli.console import charts
from tsugi_cli.console import format as words


def test_sparklines_scale_from_lowest_to_highest() -> None:
    assert charts.sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert charts.sparkline([1000, 1007], 8) == "▁█"
    assert charts.sparkline([3, 3, 3], 8) in ("▄▄▄", "▅▅▅")
    assert charts.sparkline([], 8) == ""
    assert charts.sparkline([NAN, 1, 2], 8) == "▁█"
    assert charts.sparkline([1, 3, 10, 10], 2) == "▁█"  # more values than columns: means
    assert len(charts.sparkline(range(1000), 33)) == 33


def test_steady_steps_are_half_height_and_a_stall_stands_out() -> None:
    line = charts.step_sparkline([1.0, 1.02, 0.98, 9.0, 1.0], 8)
    assert line[3] == "█"
    assert set(line.replace("█", "")) <= {"▄", "▅"}


def test_a_chart_is_a_sparkline_over_several_lines() -> None:
    assert charts.chart([0, 15], 8, 2) == [" █", "▁█"]


@pytest.mark.parametrize(("share", "line"), [(0, "────"), (0.5, "━━──"), (0.4, "━╸──"), (7, "━━━━"), (NAN, "────")])
def test_bars_read_without_colour(share: float, line: str) -> None:
    assert charts.bar(share, 4).plain == line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (words.count(0), "0"), (words.count(3.42), "3.4"), (words.count(9999), "9999"),
        (words.count(58_123), "58.1k"), (words.count(999_999), "1.0M"),
        (words.count(123_456), "123k"), (words.count("x"), "–"),
        (words.size(999), "999 B"), (words.size(1_234_567), "1.2 MB"), (words.size(None), "–"),
        (words.clock(7), "0:07"), (words.clock(3723), "1:02:03"), (words.clock(183_845), "2d 3:04:05"),
        (words.duration(0.42), "0.4s"), (words.duration(123), "123s"), (words.duration(3540), "59m"),
        (words.duration(12_240), "3.4h"), (words.step_time(0.012), "12ms"), (words.step_time(0.0), "–"),
    ],
)  # fmt: skip
def test_numbers_are_short(text: str, expected: str) -> None:
    assert text == expected
