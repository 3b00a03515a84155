"""What the user sees fits the window, survives missing and hostile values, and never raises into a run."""

from __future__ import annotations

import ast
import os
import sys
from io import StringIO
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console as Terminal

from tsugi_cli import charts, view, words
from tsugi_cli.console import Console, LiveConsole, PlainConsole, choose
from tsugi_cli.events import event_text, plain_event
from tsugi_cli.report import report
from tsugi_kpool.core.messages import FleetStatus, ReplicaStatus

NAN = float("nan")
HOSTILE = "[red]x[/red] [/bold] \x1b[31m\x1b]0;owned\x07 a\r\nb\u202e\u200b\udc80"
SUMMARY = {
    "run": "tools",
    "outcome": "finished",
    "evaluation": {
        "base": {"loss": 2.4123, "parses": 0.031, "exact": 0.0},
        "trained": {"loss": 0.3121, "parses": 1.0, "exact": 0.912},
    },
    "examples": [{"request": "Wake me", "expected": '{"a": 1}', "base": "Sorry", "trained": '{"a": 1}'}],
    "wall_s": 243.2,
    "tokens": 58123,
    "samples": 448,
    "rounds": 42,
    "tokens_per_s": 231.4,
    "goodput": 0.987,
    "replicas": [
        {"replica": 0, "samples": 358, "tokens": 46500, "tokens_per_s": 212.2, "share": 0.8},
        {"replica": 1, "samples": 90, "tokens": 11623, "tokens_per_s": 53.1, "share": 0.2},
    ],
    "model": "/models/base",
    "adapter": "runs/tools/adapter",
}


def replica(number: int, **changes: object) -> ReplicaStatus:
    values: dict[str, object] = {
        "replica": number, "host": f"node-{number}.cluster.example.org", "rank": number, "state": "training",
        "micro_steps": 100, "samples": 200, "tokens": 8000, "tokens_per_s": 212.3, "micro_step_s": 0.38,
        "lag_s": 0.0, "lag_micro": 0, "fill": 0.5, "share": 0.5, "sent_bytes": 5_400_000, "silent_s": 0.1,
    }  # fmt: skip
    return ReplicaStatus(**{**values, **changes})  # type: ignore[arg-type]


def fleet(n: int = 2, **changes: object) -> FleetStatus:
    rows = tuple(replica(i, lag_s=float(i % 7), lag_micro=i % 7 * 3) for i in range(n))
    values: dict[str, object] = {
        "run": "tools", "stage": "training", "expected": n, "epoch": 1, "version": 12, "elapsed_s": 83.0,
        "samples_done": 42, "samples_total": 448, "eta_s": 100.0, "tokens": 15_600, "tokens_per_s": 231.0,
        "goodput": 0.99, "loss": 1.234, "firing": (2, 5), "rounds": {"count": 9, "link free": 3}, "aborted": 0,
        "pool_text": "K=2 of N=8, local, int8", "trigger_text": "fires at 4 micro-steps per replica",
        "replicas": rows,
    }  # fmt: skip
    return FleetStatus(**{**values, **changes})  # type: ignore[arg-type]


def unknown_fleet() -> FleetStatus:
    rows = (
        replica(0, host="", rank=-1, tokens_per_s=NAN, micro_step_s=0.0, lag_s=NAN, fill=NAN, share=NAN),
        replica(1, lag_s=float("inf"), fill=9.0, share=-1.0, tokens_per_s=1e30, lag_micro=10**9, silent_s=NAN),
    )
    return fleet(
        samples_total=0, samples_done=0, eta_s=None, goodput=None, loss=None, firing=(), rounds={}, version=0,
        tokens_per_s=NAN, replicas=rows,
    )  # fmt: skip


def past(status: FleetStatus, steps: int = 80) -> view.History:
    """A history in which every kind of thing has happened."""
    history = view.History()
    for i in range(steps):
        rows = tuple(replica(r.replica, micro_steps=i, micro_step_s=0.3 + i % 5 / 10) for r in status.replicas)
        history.observe(fleet(tokens=i, loss=2.0 - i / 100, replicas=rows))
    for i in range(30):
        history.record(event("joined", replica=i, host=f"node-{i}", pid=i))
    history.record(event("committed", round=1, version=1, seconds=0.4, payload_bytes=1234567))
    return history


def event(name: str, **data: object) -> dict[str, object]:
    return {"time": "2026-10-05T14:03:07.123+02:00", "event": name, **data}


def drawn(renderable: object, width: int = 80, color: bool = False) -> list[str]:
    out = Terminal(
        file=StringIO(),
        width=width,
        height=24,
        force_terminal=color,
        color_system="standard" if color else None,
    )
    out.print(renderable, crop=False)
    assert isinstance(out.file, StringIO)
    return out.file.getvalue().removesuffix("\n").split("\n")


def shown(status: FleetStatus, width: int = 80, height: int = 24) -> str:
    return "\n".join(drawn(view.render(status, past(status), width, height), width))


# --- the live picture -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "height"),
    [(80, 24), (80, 23), (160, 50), (100, 30), (132, 43), (240, 70), (40, 12), (20, 6), (1, 1)],
)
@pytest.mark.parametrize("replicas", [0, 1, 2, 8, 64])
def test_the_picture_fits_the_window(width: int, height: int, replicas: int) -> None:
    status = fleet(replicas)
    for history in (view.History(), past(status)):
        lines = drawn(view.render(status, history, width, height), width)
        assert len(lines) <= height
        assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize("width", [80, 100, 120, 130, 140, 160, 200])
@pytest.mark.parametrize("first", [0, 60, 500])
def test_no_title_or_figure_of_the_table_is_cut(width: int, first: int) -> None:
    slow = {"lag_s": 86_400.0, "lag_micro": 99_999, "micro_step_s": 12.3, "sent_bytes": 999_900_000}
    rows = tuple(
        replica(first + i, host="n" * 8, state="evaluating", tokens_per_s=123_456.0, share=1.0, **slow)
        for i in range(8)
    )
    lines = shown(fleet(replicas=rows), width, 40).split("\n")
    top = next(i for i, line in enumerate(lines) if " host" in line)
    assert not [line for line in lines[top : top + 9] if "…" in line]


def test_everything_that_matters_is_in_80x24() -> None:
    rows = (replica(0, host="fast"), replica(1, host="slow", lag_s=44.6, lag_micro=117, micro_step_s=1.52))
    text = shown(fleet(replicas=rows))
    for part in (
        "tools", "training", "1:23", "K=2 of N=8, local, int8", "42/448 samples", "9%", "eta 1:40",
        "fast", "slow", "212", "0.38s", "1.52s", "44.6s", "117", "50%", "loss 1.234", "231 tok/s",
        "goodput 99%", "version 12", "9 count, 3 link free", "aborted 0", "adapters 2, 5", "events",
    ):  # fmt: skip
        assert part in text, part


def test_a_larger_window_shows_more() -> None:
    small, large = shown(fleet()), shown(fleet(), 160, 50)
    assert "newest steps" not in small
    assert "newest steps" in large
    assert large.count("joined") > small.count("joined")


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


def test_the_table_alone() -> None:
    lines = drawn(view.table(fleet(64)), 120)
    assert len(lines) == 64 + 4
    assert "newest steps" not in lines[3]  # who looks once knows no past


@pytest.mark.parametrize("run", ["tools", "a-rather-long-name-of-a-run-" * 5, "長い名前" * 20])
@pytest.mark.parametrize("samples", [448, 10**9])
def test_the_summary_above_the_table_takes_two_lines_of_80_columns(run: str, samples: int) -> None:
    status = fleet(run=run, samples_done=samples, samples_total=samples, stage="gathering", tokens_per_s=123_456.0)
    lines = drawn(view.table(msgspec.structs.replace(status, stage="training")))
    assert lines[0].startswith(run[:4])
    assert f"training   {samples:,}/{samples:,} samples" in lines[0]
    assert lines[1] == "loss 1.234   fleet 123k tok/s   goodput 99%   version 12"
    assert (lines[2], lines[3].split()[0]) == ("", "#")
    assert max(map(cell_len, lines)) <= 80
    assert drawn(view.table(status))[0].endswith("gathering   waiting for replicas: 2 of 2 joined")


@pytest.mark.parametrize("joined", [0, 1])
def test_while_replicas_are_missing_everything_says_how_many_have_joined(joined: int) -> None:
    status = fleet(joined, expected=2, stage="gathering", samples_done=0, loss=None, eta_s=None)
    waiting = f"waiting for replicas: {joined} of 2 joined"
    table = drawn(view.table(status))
    assert table[0] == f"tools  gathering   {waiting}"
    assert (table[1], table[2].split()[0]) == ("", "#")
    assert view.plain_line(status) == f"  {waiting}"
    for width, height in ((80, 24), (80, 10), (160, 50)):
        assert waiting in shown(status, width, height)


def test_nobody_is_waited_for_once_the_run_trains_or_has_failed() -> None:
    for stage in ("training", "failed"):
        status = fleet(1, expected=2, stage=stage)
        table = "\n".join(drawn(view.table(status)))
        assert "waiting" not in shown(status) + table + view.plain_line(status)


def test_a_replica_that_has_ended_is_not_called_silent() -> None:
    assert "silent" not in shown(fleet(replicas=(replica(0, state="done", silent_s=90.0),)))


def test_unknown_values_are_dashes() -> None:
    status = unknown_fleet()
    text = shown(status, 160, 50)
    assert "nan" not in text
    assert "None" not in text
    assert "loss –" in "\n".join(drawn(view.render(status, view.History(), 80, 24)))
    assert "nan" not in "\n".join(drawn(view.table(status), 160))
    assert "nan" not in view.plain_line(status)


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
        replica(i, host=text, state=text, tokens_per_s=a, micro_step_s=b, lag_s=c, fill=d, share=e, silent_s=f)
        for i in range(n)
    )
    status = fleet(
        run=text, stage=text, samples_done=done, samples_total=total, eta_s=a, elapsed_s=b, goodput=g, loss=h,
        replicas=rows, rounds={text: 3},
    )  # fmt: skip
    history = view.History()
    history.observe(status)
    history.record(event(text, replica=text))
    lines = drawn(view.render(status, history, width, height), width)
    assert len(lines) <= height
    drawn(view.table(status), width)
    assert view.plain_line(status).isprintable()


# --- hostile text -----------------------------------------------------------------------------------------


def hostile_outputs() -> list[str]:
    rows = (replica(0, host=HOSTILE, state=HOSTILE),)
    status = fleet(run=HOSTILE, stage=HOSTILE, pool_text=HOSTILE, trigger_text="", rounds={HOSTILE: 1}, replicas=rows)
    history = view.History()
    history.record(event("failed", replica=HOSTILE, reason=HOSTILE))
    history.record(event(HOSTILE, **{HOSTILE: [HOSTILE]}))
    examples = [dict.fromkeys(("request", "expected", "base", "trained"), HOSTILE)]
    metrics = {"base": {HOSTILE: 0.5}, "trained": {HOSTILE: 0.6}}
    summary = {"run": HOSTILE, "outcome": HOSTILE, "examples": examples, "evaluation": metrics}
    summary |= {"adapter": HOSTILE, "model": HOSTILE, "replicas": [{"replica": HOSTILE}]}
    pictures = [view.render(status, history, 200, 50), view.table(status), report(summary)]
    plain = [view.plain_line(status), plain_event(event("note", text=HOSTILE)), *history.events]
    return ["\n".join(drawn(picture, 200)) for picture in pictures] + plain


def test_hostile_text_is_shown_and_not_obeyed() -> None:
    for text in hostile_outputs():
        assert not [c for c in text if not c.isprintable() and c != "\n"]
        assert "[red]" in text  # markup is neither obeyed nor swallowed
    assert r"\x1b[31m\x1b]0;owned\x07 a\r\nb\u202e\u200b\udc80" in hostile_outputs()[3]


def test_markup_in_a_host_gives_no_colour() -> None:
    status = fleet(replicas=(replica(0, host="[red]x"),))
    text = "\n".join(drawn(view.table(status), 100, color=True))
    assert "[red]x" in text
    assert "\x1b[31m" not in text


# --- small pictures and history ---------------------------------------------------------------------------


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


def test_the_same_status_twice_adds_nothing() -> None:
    history = view.History()
    for _ in range(5):
        history.observe(fleet())
    assert len(history.loss.values) == 1
    assert len(history.steps[0]) == 1


def test_history_stays_small_and_keeps_the_whole_run() -> None:
    history = past(fleet(), steps=5000)
    assert len(history.loss.values) < view.LOSSES_KEPT
    assert len(history.steps[0]) == view.STEPS_KEPT
    assert len(past(fleet()).events) <= view.EVENTS_KEPT
    assert history.loss.values[0] == pytest.approx(2.0, abs=0.2)
    assert history.loss.values[-1] == pytest.approx(2.0 - 50, abs=0.5)
    history.observe(fleet(1))
    assert list(history.steps) == [0]  # who has left takes its steps along


def test_rounds_in_a_row_share_one_line() -> None:
    history = view.History()
    for number in (1, 2, 3):
        history.record(event("fired", round=number, adapters=[1, 2], reason="count", pooled=9))
        history.record(event("committed", round=number, version=number, seconds=0.42, payload_bytes=1_234_567))
    history.record(event("aborted", round=4, reason="timeout"))
    history.record(event("committed", round=5, version=4, seconds=0.42, payload_bytes=1_234_567))
    assert list(history.events) == [
        "14:03:07  rounds 1 to 3 committed, the last in 0.4s, 1.2 MB",
        "14:03:07  round 4 aborted: timeout",
        "14:03:07  round 5 committed in 0.4s, 1.2 MB",
    ]


# --- plain ------------------------------------------------------------------------------------------------


def test_plain_line() -> None:
    rows = (replica(0), replica(1, lag_s=1.2))
    expected = "   42/448 samples   9%  loss 1.234  231 tok/s  goodput 99%  round 12  lag 1.2s(r1)  eta 1:40"
    assert view.plain_line(fleet(replicas=rows)) == expected
    bare = fleet(stage="loading", tokens_per_s=0.0, goodput=None, loss=None, version=0, eta_s=None, replicas=())
    assert view.plain_line(bare) == "   42/448 samples   9%  loading"


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (event("joined", replica=1, host="b", pid=7), "replica 1 joined from b, pid 7"),
        (event("epoch", epoch=2, members=[0, 2]), "epoch 2: replicas 0, 2"),
        (event("evaluated", replica=0, stage="base"), "replica 0 has evaluated its share, base"),
        (event("finished", version=42), "finished at version 42"),
        (event("failed", replica=1, reason="out of memory"), "replica 1 failed: out of memory"),
        (event("note", text="{version} %s"), "{version} %s"),
        (event("failed"), "replica ? failed: ?"),
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


def test_plain_console_escapes_what_the_stream_cannot_encode(tmp_path) -> None:
    path = tmp_path / "log"
    with path.open("w", encoding="ascii") as out:
        console = PlainConsole(out)
        console.message("naïve")
        console.report(SUMMARY)
        assert not console.broken
    assert "na\\xefve" in path.read_text()


# --- the report -------------------------------------------------------------------------------------------


def test_report_compares_base_and_trained() -> None:
    text = "\n".join(drawn(report(SUMMARY)))
    for part in (
        "finished", "eval loss", "2.412", "0.312", "▼ 87%", "3.1%", "100.0%", "▲ 96.9 points", "Wake me",
        "Sorry", "wall time 4:03", "448", "58.1k", "42", "231 tok/s", "goodput 99%", "46.5k", "80%",
        "runs/tools/adapter", "from peft import PeftModel",
    ):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize("missing", [*SUMMARY, None])
def test_report_leaves_out_what_is_missing(missing: str | None) -> None:
    summary = {} if missing is None else {k: v for k, v in SUMMARY.items() if k != missing}
    assert drawn(report(summary))
    assert drawn(report({**summary, str(missing): None}))


def test_what_loads_the_adapter_is_python_whatever_the_width() -> None:
    path, model = "/a/rather/long/path's" * 5, "org/model" * 9
    lines = drawn(report({"adapter": path, "model": model}), 40)
    tree = ast.parse("\n".join(lines[lines.index("from peft import PeftModel") :]))
    paths = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert sorted(paths) == [path, model]


@pytest.mark.parametrize("make", [LiveConsole, PlainConsole])
def test_what_loads_the_adapter_can_be_copied_and_run(make, xterm: pytest.MonkeyPatch) -> None:
    xterm.setenv("COLUMNS", "40")
    xterm.setenv("NO_COLOR", "1")
    loaded: list[tuple[object, ...]] = []
    load = SimpleNamespace(from_pretrained=lambda *given: loaded.append(given))
    xterm.setitem(sys.modules, "peft", SimpleNamespace(PeftModel=load))
    xterm.setitem(sys.modules, "transformers", SimpleNamespace(AutoModelForCausalLM=load))
    out, model, adapter = Tty(), "/a model/it's here" * 9, "/runs/\x1b[31m/adapter" * 9
    make(out).report({"model": model, "adapter": adapter})
    exec(out.getvalue()[out.getvalue().index("from peft") :], {})
    assert loaded == [(model,), (None, adapter)]


def test_without_the_model_there_is_nothing_to_copy() -> None:
    text = "\n".join(drawn(report({**SUMMARY, "model": None})))
    assert "runs/tools/adapter" in text
    assert "from_pretrained" not in text


def test_report_of_an_interrupted_run() -> None:
    partial = {"outcome": "interrupted", "evaluation": {"base": {"loss": 2.4}}, "examples": [{"base": ""}]}
    text = "\n".join(drawn(report(partial)))
    assert "interrupted" in text
    assert "2.400" in text
    assert "–" in text
    assert "(nothing)" in text


def test_report_clips_what_goes_on_for_ever_and_counts_the_fast_ones() -> None:
    replicas = [{"replica": i, "tokens_per_s": 100.0 + i} for i in range(40)]
    summary = {"examples": [{"base": "bla " * 1000}], "replicas": replicas}
    lines = drawn(report(summary))
    assert len(lines) < 40
    assert any("and 24 faster ones" in line for line in lines)


# --- terminals --------------------------------------------------------------------------------------------


class Tty(StringIO):
    """A terminal that only remembers; `breaks` makes it behave like one that went away."""

    encoding = "utf-8"  # type: ignore[assignment]
    breaks = False

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.breaks:
            raise BrokenPipeError
        return super().write(text)


@pytest.fixture
def xterm(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return monkeypatch


def use(console: Console) -> None:
    console.open()
    console.message("hello")
    console.show(fleet())
    console.event(event("failed", replica=1, reason="gone"))
    console.event(event("committed", round=1))
    console.show(fleet(tokens=16_000))
    console.report(SUMMARY)
    console.close()
    console.close()


def test_choose(xterm: pytest.MonkeyPatch) -> None:
    assert isinstance(choose(Tty(), plain=False), LiveConsole)
    assert isinstance(choose(Tty(), plain=True), PlainConsole)
    assert isinstance(choose(StringIO(), plain=False), PlainConsole)
    ascii_tty = SimpleNamespace(isatty=lambda: True, encoding="ascii")
    assert isinstance(choose(ascii_tty, plain=False), PlainConsole)  # type: ignore[arg-type]
    with open(os.devnull, "w") as closed:  # noqa: PTH123
        pass
    assert isinstance(choose(closed, plain=False), PlainConsole)
    xterm.setenv("TERM", "dumb")
    assert isinstance(choose(Tty(), plain=False), PlainConsole)


def test_live_console_draws_and_ends_with_the_report(xterm: pytest.MonkeyPatch) -> None:
    out = Tty()
    use(LiveConsole(out))
    text = out.getvalue()
    assert "K=2 of N=8" in text
    assert text.index("hello") < text.index("K=2 of N=8") < text.index("from peft")
    assert text.index("\x1b[?25l") < text.index("\x1b[?25h")  # the cursor is back
    assert "\x1b[?1049" not in text  # never the alternate screen


def test_live_console_starts_over_in_a_resized_window(xterm: pytest.MonkeyPatch) -> None:
    out = Tty()
    with LiveConsole(out) as console:
        console.message("run directory")
        console.show(fleet())
        xterm.setenv("COLUMNS", "100")
        xterm.setenv("LINES", "30")
        console._terminal = Terminal(file=out, force_terminal=True, width=100, height=30)
        console.show(fleet())
    assert out.getvalue().count("run directory") == 2
    assert not console.broken


@pytest.mark.parametrize("make", [LiveConsole, PlainConsole])
@pytest.mark.parametrize("when", ["before", "while"])
@pytest.mark.parametrize("how", ["pipe", "closed"])
def test_a_broken_terminal_goes_quiet(make, when: str, how: str, xterm: pytest.MonkeyPatch) -> None:
    out, streams = Tty(), (sys.stdout, sys.stderr)
    console = make(out)
    if when == "while":
        console.open()
        console.show(fleet())
    if how == "pipe":
        out.breaks = True
    else:
        out.close()
    use(console)
    assert console.broken
    assert (sys.stdout, sys.stderr) == streams


def test_a_real_closed_pipe_goes_quiet(xterm: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        for console in (PlainConsole(stream), LiveConsole(stream)):
            use(console)
            assert console.broken
        with pytest.raises(BrokenPipeError):
            stream.close()  # what was still buffered is the stream's own affair


def test_a_run_that_fails_keeps_its_error(xterm: pytest.MonkeyPatch) -> None:
    def fail(console: Console) -> None:
        with console:
            console.show(fleet())
            raise KeyError

    out = Tty()
    with pytest.raises(KeyError):
        fail(LiveConsole(out))
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1
