"""Whether it is worth to wait for what comes in: by its pace, and by the time that is left."""

from __future__ import annotations

import pytest

from tsugi_cli.launch.pace import LEAST_BYTES_PER_S, MOST_S, MOST_TOTAL_S, WINDOW_S, Pace, Verdict, latest_s

MB = 1_000_000


def fed(total: int, bytes_per_s: float, until_s: float, silent: tuple[float, float] = (0.0, 0.0)) -> Pace:
    """Bytes come every second, but not between these two moments."""
    pace = Pace(total, 0.0, latest_s(total, 0.0, 0.0))
    for second in range(1, int(until_s) + 1):
        if not silent[0] < second <= silent[1]:
            pace.came(int(bytes_per_s), float(second))
    return pace


@pytest.mark.parametrize(
    ("total", "bytes_per_s", "at_s", "expected"),
    [
        (100 * MB, 5_000, WINDOW_S - 1, Verdict.GOES_ON),  # too young to be judged
        (100 * MB, 5_000, WINDOW_S, Verdict.TOO_SLOW),  # 20,000 s would be left
        (10 * MB, 40_000, WINDOW_S, Verdict.SLOW),  # it would be here in time
        (10 * MB, 2 * LEAST_BYTES_PER_S, WINDOW_S, Verdict.GOES_ON),
        (10 * MB, 0, WINDOW_S + 9, Verdict.GOES_ON),  # silence has its own deadline
        (10 * MB, 40_000, MOST_S + 160, Verdict.TOO_SLOW),
    ],
)
def test_a_giver_is_judged_by_its_pace(total: int, bytes_per_s: float, at_s: float, expected: Verdict) -> None:
    assert fed(total, bytes_per_s, at_s).verdict(at_s) is expected


def test_a_link_that_was_cut_for_as_long_as_is_waited_for_is_no_slow_one() -> None:
    for second in range(int(WINDOW_S), 200):
        pace = fed(200 * MB, MB, second, silent=(80.0, 109.0))
        assert pace.verdict(float(second)) is Verdict.GOES_ON, second


def test_all_attempts_together_have_an_end() -> None:
    assert latest_s(0, 50.0, 0.0) == 50.0 + MOST_S
    assert latest_s(1 << 60, 50.0, 0.0) == MOST_TOTAL_S
    assert latest_s(LEAST_BYTES_PER_S * 100, 0.0, 0.0) == MOST_S + 100
