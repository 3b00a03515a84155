"""The live picture fits the window, survives missing and hostile values, and shows what matters."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from tests.pictures import HOSTILE, drawn, event, fleet, past, replica, shown, unknown_fleet
from tsugi_cli.console import view
from tsugi_cli.console.events import plain_event
from tsugi_cli.console.history import History
from tsugi_cli.console.plain import plain_line
from tsugi_cli.console.report import report
from tsugi_cli.console.table import table
from tsugi_cli.record.rows import choose
from tsugi_kpool.core.messages import Slowness


@pytest.mark.parametrize(
    ("width", "height"),
    [(80, 24), (80, 23), (160, 50), (100, 30), (132, 43), (240, 70), (40, 12), (20, 6), (1, 1)],
)
@pytest.mark.parametrize("replicas", [0, 1, 2, 8, 64])
def test_the_picture_fits_the_window(width: int, height: int, replicas: int) -> None:
    status = fleet(replicas)
    for history in (History(), past(status)):
        lines = drawn(view.render(status, history, width, height), width)
        assert len(lines) <= height
        assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize("width", [80, 100, 120, 130, 140, 160, 200])
@pytest.mark.parametrize("first", [0, 60, 500])
def test_no_title_or_figure_of_the_table_is_cut(width: int, first: int) -> None:
    slow = {"lag_s": 86_400.0, "lag_steps": 99_999, "step_s": 12.3, "sent_bytes": 999_900_000}
    rows = tuple(
        replica(first + i, host="n" * 8, state="evaluating", tokens_per_s=123_456.0, share=1.0, **slow)
        for i in range(8)
    )
    lines = shown(fleet(replicas=rows), width, 40).split("\n")
    top = next(i for i, line in enumerate(lines) if " host" in line)
    assert not [line for line in lines[top : top + 9] if "…" in line]


def test_everything_that_matters_is_in_80x24() -> None:
    slowness = Slowness(3.8, 61.0, 0.41, 1.56, "step", "compute", ("CPU steal 62 %",))
    rows = (
        replica(0, host="fast", received_bytes=5_300_000, up_bytes=166_000),
        replica(1, host="slow", lag_s=44.6, lag_steps=117, step_s=1.52, slowness=slowness),
    )
    status = fleet(
        replicas=rows, health="degraded", health_reasons=("replica 1 (slow) is slow, up to 3.8x",), pooled=5,
        target=8.0, variance=0.0324, eps=0.02, goodput_now=0.97, tax_recovered=0.93,
    )  # fmt: skip
    history = past(status)
    for number in (2, 3):
        history.record(event("fired", round=number, adapters=[1, 2], reason="count", pooled=8))
    history.record(event("aborted", round=2, reason="replica 1 left"))
    lines = drawn(view.render(status, history, 80, 24))
    text = "\n".join(lines)
    for part in (
        "tools", "training", "1:23", "K=2 of N=8, local, int8", "42/448 samples", "9%", "eta 1:40",
        "fast", "slow", "212", "0.38s", "1.52s", "44.6s", "117", "slow 3.8x", "newest steps", "loss    1.234",
        "231 tok/s", "goodput now 97%   so far 99%", "tax recovered 93%", "5 of 8 steps",
        "variance/eps 1.62", "newest 0.40s   9 count, 3 link free", "up 10.8 MB   down 5.3 MB",
        "sideband 1.0 kB/s a replica", "degraded  replica 1 (slow) is slow, up to 3.8x", "events",
    ):  # fmt: skip
        assert part in text, part
    assert "█×·" in next(line for line in lines if line.startswith(" rounds"))
    assert len(lines) == 24


def test_a_round_that_has_landed_on_some_members_has_a_mark_of_its_own() -> None:
    status = fleet(reduced=1)
    history = past(status)
    history.record(event("fired", round=2, adapters=[1, 2], reason="count", pooled=8))
    assert "█·" in "\n".join(drawn(view.render(status, history, 80, 24)))
    history.observe(status)
    assert "█◦" in "\n".join(drawn(view.render(status, history, 80, 24)))
    assert "reduced on 1" in "\n".join(drawn(view.render(status, history, 160, 50), 160))
    history.record(event("committed", round=2, version=2, seconds=0.3))
    assert "◦" not in "\n".join(drawn(view.render(status, history, 160, 50), 160))


def test_a_larger_window_shows_more() -> None:
    status = fleet(tax_recovered=0.93)
    history = past(status)
    history.record(event("fired", round=2, adapters=[1, 2], reason="count", pooled=8))
    small, large = (drawn(view.render(status, history, *size), size[0]) for size in ((80, 24), (160, 50)))
    for title in ("share", "drift", "samples", "up", "down", "rtt"):
        assert title in large[5].split()
        assert title not in small[5].split()
    text = "\n".join(large)
    assert "collective" in text
    assert "tok/s" in [line.strip() for line in large]  # the title of a chart
    assert text.count("joined") > "\n".join(small).count("joined")
    assert len(large) == 50


def test_lines_stay_where_they_are_whatever_the_health() -> None:
    well = fleet(joined=2)
    ill = fleet(joined=2, health="no quorum", health_reasons=("1 of at least 2 replicas are live",))
    for size in ((80, 24), (160, 50)):
        first, second = (drawn(view.render(status, past(status), *size), size[0]) for status in (well, ill))
        assert [i for i, line in enumerate(first) if line != second[i]] == [2]


def test_what_was_refused_is_shown_once_there_is_something() -> None:
    assert "refused" not in shown(fleet())
    assert " refused 12.3k key, 2 malformed" in shown(fleet(refused={"malformed": 2, "key": 12_345, "old": 0}))


def test_1000_replicas_fit_and_the_rest_is_counted() -> None:
    status = fleet(200, joined=1000)
    for width, height in ((80, 24), (60, 24), (160, 50)):
        lines = drawn(view.render(status, past(status), width, height), width)
        assert len(lines) == height
        rows = [line for line in lines if "node-" in line and "training" in line]
        assert len(rows) >= 5
        assert sum(f"and {1000 - len(rows):,} more" in line for line in lines) == 1


def test_the_same_replicas_stay_listed_while_they_differ_by_little() -> None:
    def listed(turn: int) -> list[int]:
        rows = [
            replica(i, lag_s=0.1 + (i * 7 + turn) % 5 / 50, tokens_per_s=212.0 + (i + turn) % 9) for i in range(64)
        ]
        return [row.replica for row in choose([*rows, replica(64, lag_s=9.0)], 6)[0]]

    assert len({tuple(listed(turn)) for turn in range(20)}) == 1
    assert 64 in listed(0)


def test_a_narrow_window_says_less_and_cuts_no_figure() -> None:
    status = fleet(eps=0.02, variance=0.0324, pooled=5, target=8.0, tax_recovered=0.9)
    lines = drawn(view.render(status, past(status), 60, 24), 60)
    for title in ("fleet", "loss", "pool", "rounds", "links"):
        line = next(line for line in lines if line.startswith(f" {title} "))
        assert "…" not in line


def test_of_64_replicas_the_interesting_ones_are_shown_and_the_rest_counted() -> None:
    rows = [replica(i, host=f"h{i}") for i in range(64)]
    rows[41] = replica(41, host="h41", lag_s=30.0)
    rows[17] = replica(17, host="h17", state="failed")
    rows[50] = replica(50, host="h50", state="silent", silent_s=12.0)
    text = shown(fleet(replicas=tuple(rows)))
    assert all(host in text for host in ("h17", "h41", "h50"))
    assert "silent 12s" in text
    listed = sum(f" h{i} " in text for i in range(64))
    assert f"and {64 - listed} more: 212 to 212 tok/s" in text


@pytest.mark.parametrize("joined", [0, 1])
def test_while_replicas_are_missing_everything_says_how_many_have_joined(joined: int) -> None:
    status = fleet(joined, expected=2, stage="gathering", samples_done=0, loss=None, eta_s=None)
    waiting = f"waiting for replicas: {joined} of 2 joined"
    lines = drawn(table(status))
    assert lines[0] == f"tools  gathering   {waiting}"
    assert (lines[1], lines[2].split()[0]) == ("", "#")
    assert plain_line(status) == f"  {waiting}"
    for width, height in ((80, 24), (80, 10), (160, 50)):
        assert waiting in shown(status, width, height)


def test_nobody_is_waited_for_once_the_run_trains_or_has_failed() -> None:
    for stage in ("training", "failed"):
        status = fleet(1, expected=2, stage=stage)
        once = "\n".join(drawn(table(status)))
        assert "waiting" not in shown(status) + once + plain_line(status)


def test_a_replica_that_has_ended_is_not_called_silent() -> None:
    assert "silent" not in shown(fleet(replicas=(replica(0, state="done", silent_s=90.0),)))


def test_unknown_values_are_dashes() -> None:
    status = unknown_fleet()
    text = shown(status, 160, 50)
    assert "nan" not in text
    assert "None" not in text
    assert "loss    –" in "\n".join(drawn(view.render(status, History(), 80, 24)))
    assert "nan" not in "\n".join(drawn(table(status), 160))
    assert "nan" not in plain_line(status)


@given(
    done=st.integers(0, 10**9), total=st.integers(0, 10**9),
    floats=st.lists(st.floats(), min_size=8, max_size=8), text=st.text(max_size=40),
    width=st.integers(1, 200), height=st.integers(1, 60), n=st.integers(0, 12),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_no_status_raises(
    done: int, total: int, floats: list[float], text: str, width: int, height: int, n: int
) -> None:
    a, b, c, d, e, f, g, h = floats
    rows = tuple(
        replica(i, host=text, state=text, tokens_per_s=a, step_s=b, lag_s=c, fill=d, share=e, silent_s=f)
        for i in range(n)
    )
    status = fleet(
        run=text, stage=text, samples_done=done, samples_total=total, eta_s=a, elapsed_s=b, goodput=g, loss=h,
        replicas=rows, rounds={text: 3},
    )  # fmt: skip
    history = History()
    history.observe(status)
    history.record(event(text, replica=text))
    lines = drawn(view.render(status, history, width, height), width)
    assert len(lines) <= height
    drawn(table(status), width)
    assert plain_line(status).isprintable()


def test_wide_and_odd_host_names_keep_the_columns_in_line() -> None:
    hosts = ("長い名前のノード", "é" * 30, "a\u0301b", "", "10.0.0.1", "x\u202ey")
    status = fleet(replicas=tuple(replica(i, host=host) for i, host in enumerate(hosts)))
    for width, height in ((80, 24), (60, 24), (160, 50)):
        lines = drawn(view.render(status, past(status), width, height), width)
        assert {cell_len(line) for line in lines} <= {width, 0}
        ends = {cell_len(line[: line.index("training")]) for line in lines if "training" in line and "0.38s" in line}
        assert len(ends) == 1


def test_colour_only_repeats_what_is_written() -> None:
    status = fleet(health="degraded", health_reasons=("replica 1 (b) is silent",), refused={"key": 1})
    picture = view.render(status, past(status), 100, 30)
    plain = drawn(picture, 100)
    assert [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in drawn(picture, 100, color=True)] == plain


# --- hostile text -----------------------------------------------------------------------------------------


def hostile_outputs() -> list[str]:
    rows = (replica(0, host=HOSTILE, state=HOSTILE),)
    status = fleet(run=HOSTILE, stage=HOSTILE, pool_text=HOSTILE, trigger_text="", rounds={HOSTILE: 1}, replicas=rows)
    history = History()
    history.record(event("failed", replica=HOSTILE, reason=HOSTILE))
    history.record(event(HOSTILE, **{HOSTILE: [HOSTILE]}))
    examples = [dict.fromkeys(("request", "expected", "base", "trained"), HOSTILE)]
    metrics = {"base": {HOSTILE: 0.5}, "trained": {HOSTILE: 0.6}}
    summary = {"run": HOSTILE, "outcome": HOSTILE, "examples": examples, "evaluation": metrics}
    summary |= {"adapter": HOSTILE, "model": HOSTILE, "replicas": [{"replica": HOSTILE}]}
    pictures = [view.render(status, history, 200, 50), table(status), report(summary)]
    plain = [plain_line(status), plain_event(event("note", text=HOSTILE)), *history.events]
    return ["\n".join(drawn(picture, 200)) for picture in pictures] + plain


def test_hostile_text_is_shown_and_not_obeyed() -> None:
    for text in hostile_outputs():
        assert not [c for c in text if not c.isprintable() and c != "\n"]
        assert "[red]" in text  # markup is neither obeyed nor swallowed
    assert r"\x1b[31m\x1b]0;owned\x07 a\r\nb\u202e\u200b\udc80" in hostile_outputs()[3]


def test_markup_in_a_host_gives_no_colour() -> None:
    status = fleet(replicas=(replica(0, host="[red]x"),))
    text = "\n".join(drawn(table(status), 100, color=True))
    assert "[red]x" in text
    assert "\x1b[31m" not in text
