"""Plain lines for pipes and logs, and events in words."""

from __future__ import annotations

from io import StringIO

import pytest

from tests.pictures import SUMMARY, event, fleet, replica, shown
from tsugi_cli.console.events import event_text, plain_event
from tsugi_cli.console.plain import PlainConsole, plain_line
from tsugi_kpool.core.messages import Slowness


def test_plain_line() -> None:
    rows = (replica(0), replica(1, lag_s=1.2))
    expected = "   42/448 samples   9%  loss 1.234  231 tok/s  goodput 99%  round 12  lag 1.2s(r1)  eta 1:40"
    assert plain_line(fleet(replicas=rows)) == expected
    bare = fleet(stage="loading", tokens_per_s=0.0, goodput=None, loss=None, version=0, eta_s=None, replicas=())
    assert plain_line(bare) == "   42/448 samples   9%  loading"


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (event("joined", replica=1, host="b", pid=7), "replica 1 joined from b, pid 7"),
        (event("generation", generation=2, members=[0, 2]), "generation 2: replicas 0, 2"),
        (event("evaluated", replica=0, stage="base"), "replica 0 has evaluated its share, base"),
        (
            event("sized", replica=1, micro_batch=2, was=8, period_s=0.52),
            "replica 1 takes 2 samples a step, before 8, to be done in 0.52s",
        ),
        (event("finished", version=42), "finished at version 42"),
        (event("failed", replica=1, reason="out of memory"), "replica 1 failed: out of memory"),
        (event("note", text="{version} %s"), "{version} %s"),
        (event("failed"), "the run has failed: ?"),
        (event("new_kind", a=1, b="x"), "new_kind a=1 b=x"),
    ],
)  # fmt: skip
def test_events_in_words(record: dict[str, object], text: str) -> None:
    assert plain_event(record) == f"14:03:07  {text}"
    assert event_text({}) == "?"


def test_plain_console_prints_seldom_and_never_a_control_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = StringIO()
    with PlainConsole(out, every_s=10) as console:
        console.message("to \x1b[31mwork")
        for second in range(26):
            console.show(fleet(elapsed_s=float(second), samples_done=second))
            console.event(event("fired", round=second))
            console.event(event("committed", round=second))
        console.event(event("failed", replica=1, reason="\x1b[2J"))
        console.report(SUMMARY)
    lines = out.getvalue().split("\n")
    assert [line.split("/")[0].strip() for line in lines if "/448 samples" in line] == [
        "0", "10", "20", "25",
    ]  # fmt: skip
    assert r"replica 1 failed: \x1b[2J" in out.getvalue()
    assert "round 3" not in out.getvalue()
    assert all(line.isprintable() for line in lines)


def test_plain_console_says_a_new_stage_at_once() -> None:
    out = StringIO()
    with PlainConsole(out, every_s=10) as console:
        console.show(fleet(stage="loading", elapsed_s=1.0))
        console.show(fleet(stage="training", elapsed_s=2.0))
    assert len(out.getvalue().splitlines()) == 2


def test_plain_console_says_an_end_once() -> None:
    """`tsugi join` said the same line after its last words; a run every ten seconds while it evaluated."""
    out = StringIO()
    with PlainConsole(out, every_s=10) as console:
        for second in range(0, 40, 5):
            console.show(fleet(stage="finished", eta_s=None, elapsed_s=float(second)))
        console.message("replica 2 has finished")
        console.show(fleet(stage="finished", eta_s=None, elapsed_s=41.0))
    assert len([line for line in out.getvalue().splitlines() if "finished  " in line]) == 1
    assert out.getvalue().endswith("replica 2 has finished\n")


def test_where_nobody_knows_how_much_data_there_is_no_share_is_made_up() -> None:
    status = fleet(samples_total=0, samples_done=1716, eta_s=None)
    assert plain_line(status).startswith("  1716 samples  loss")
    assert "1,716 samples" in shown(status)
    assert "%" not in shown(status).splitlines()[3]


def test_plain_console_says_a_change_of_health_at_once_and_once() -> None:
    out = StringIO()
    ill = {"health": "degraded", "health_reasons": ("replica 1 (b) is silent",)}
    with PlainConsole(out, every_s=10) as console:
        for second, changes in enumerate(({}, ill, ill, {})):
            console.show(fleet(elapsed_s=1.0 + second / 10, **changes))
    said = [line for line in out.getvalue().splitlines() if "health" in line]
    assert said == ["  health: degraded, replica 1 (b) is silent", "  health: healthy"]


def test_plain_line_names_who_is_slow() -> None:
    rows = tuple(replica(i, slowness=Slowness(1.5 + i, 9.0, 0.4, 1.0, "step", "compute", ())) for i in (1, 2))
    line = plain_line(fleet(replicas=(replica(0), *rows), tax_recovered=0.93))
    assert "tax recovered 93%" in line
    assert "slow 3.5x(r2) and 1 more" in line


def test_plain_console_escapes_what_the_stream_cannot_encode(tmp_path) -> None:
    path = tmp_path / "log"
    with path.open("w", encoding="ascii") as out:
        console = PlainConsole(out)
        console.message("naïve")
        console.report(SUMMARY)
        assert not console.broken
    assert "na\\xefve" in path.read_text()
