"""`tsugi bench`: what it plans, how it judges, what it recommends. Pure parts; the command runs in tests/process."""

from __future__ import annotations

import io
import json
import math
import re
from datetime import datetime
from xml.etree import ElementTree

import pytest

from tests.pictures import Tty, xterm
from tsugi_cli.bench.compare import plan, plots, results
from tsugi_cli.bench.compare.analysis import MethodOutcome, Share, best_scales, report
from tsugi_cli.bench.compare.command import left, plan_lines
from tsugi_cli.bench.compare.display import Display, Eta
from tsugi_cli.bench.compare.folder import Folder, make, newest
from tsugi_cli.bench.compare.page import page
from tsugi_cli.bench.compare.plan import Run
from tsugi_cli.bench.compare.request import Benchmark, asked
from tsugi_cli.bench.compare.statistics import Point, at, crossing, estimate, ratio
from tsugi_cli.bench.spec import METHODS, Bench, read, scenarios
from tsugi_kpool.errors import ConfigError

__all__ = ["xterm"]

STRAGGLER = read(["bench.scenario=straggler4x"])


def mistakes(*tokens: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Benchmark.read([*tokens, "model=tiny"])
    return caught.value.problems


# What is asked for


def test_every_scenario_that_ships_can_be_read():
    assert {"straggler4x", "jitter", "slow_link", "cross_rack", "cross_region", "healthy", "none"} == set(scenarios())
    for name in scenarios():
        assert read([f"bench.scenario={name}"]).name == name
    assert STRAGGLER.methods == list(METHODS)


def test_values_are_read_as_their_types():
    bench = read(
        ["bench.kpool=[default,kpool.k=8 kpool.payload=bf16]", "bench.seeds=[3,4]", "bench.lr_scales=0.5,2",
         "bench.target=4.5", "bench.scenario.slow=2"]
    )  # fmt: skip
    assert bench.kpool == ["default", "kpool.k=8 kpool.payload=bf16"]
    assert (bench.seeds, bench.lr_scales, bench.target, bench.scenario.slow) == ([3, 4], [0.5, 2.0], 4.5, 2.0)


def test_all_mistakes_are_named_at_once_with_what_may_have_been_meant():
    found = mistakes("bench.scenaro=jitter", "bench.methods=[ddp,lokal_sgd]", "kpool.kk=2")
    assert found[0] == "bench.scenaro: no such key; did you mean bench.scenario?"
    assert found[1].endswith("did you mean local_sgd?")
    assert found[2] == "kpool.kk: no such key; did you mean kpool.k?"
    assert "did you mean jitter?" in mistakes("bench.scenario=jiter")[0]
    assert mistakes("topology.replicas=1")[0].startswith("topology.replicas must be at least 2")
    assert mistakes("train.neftune=5") == ["train.neftune must be 0 in a benchmark: only K-Pool's runs would have it"]
    assert mistakes("bench.kpool=[kpool.k=99]") == ["kpool.k must not exceed kpool.n, found k=99 with n=8"]
    assert "bench.seeds names one twice" in mistakes("bench.seeds=[1,1]")


def test_a_benchmark_that_goes_on_keeps_its_settings(tmp_path):
    folder = Folder(tmp_path)
    folder.write_request(["model=tiny"], ["bench.scenario=jitter"])
    where, benchmark = asked([f"resume={tmp_path}"])
    assert (where, benchmark.bench.name, benchmark.base) == (folder, "jitter", ("model=tiny",))
    with pytest.raises(ConfigError, match="keeps its settings"):
        asked([f"resume={tmp_path}", "train.lr=1"])
    with pytest.raises(ConfigError, match="no benchmark"):
        asked(["resume=last", f"runs_dir={tmp_path}"])


def test_benchmarks_that_begin_in_the_same_second_have_directories_of_their_own(tmp_path):
    now = datetime(2026, 11, 24)
    first, second = (make(tmp_path, "jitter", now) for _ in range(2))
    assert first.root != second.root
    assert newest(tmp_path) == second


# What is run


def test_all_methods_train_on_the_same_samples_in_whole_steps():
    assert plan.step_count(STRAGGLER, 4) == 240
    assert plan.step_count(read(["bench.steps=100"]), 4) == 108  # of 4 and of 3 replicas
    assert [arm.replicas for arm in plan.arms(STRAGGLER, 4)] == [4, 4, 4, 3, 4]


def test_rates_are_tuned_over_one_grid_and_its_runs_are_not_made_again():
    every = plan.arms(STRAGGLER, 4)
    grid = plan.tuning(STRAGGLER, every)
    assert {(run.arm.name, run.lr_scale) for run in grid} == {
        (arm.name, scale) for arm in every for scale in STRAGGLER.lr_scales
    }
    assert {run.emulated for run in grid if run.arm.synchronous} == {False}, "its loss does not depend on time"
    again = plan.measured(STRAGGLER, dict.fromkeys((arm.name for arm in every), 1.0), every)
    assert len({run.key for run in [*grid, *again]}) == len(plan.expected(STRAGGLER, every)) == 20 + 15 - 1
    assert plan.tuning(read(["bench.lr_scales=[1]"]), every) == []


def test_the_emulated_device_is_the_same_for_every_method():
    every = {arm.name: arm for arm in plan.arms(STRAGGLER, 4)}
    given = {
        name: plan.overrides(STRAGGLER, ["model=tiny"], 1e-3, Run(arm, 2.0, 1), 4) for name, arm in every.items()
    }
    padded = "fault.step_s=[0:0.1,1:0.1,2:0.1,3:0.4]"
    assert all(padded in words for name, words in given.items() if name != "drop_slowest")
    assert "fault.step_s=[0:0.1,1:0.1,2:0.1]" in given["drop_slowest"]
    assert {words[-1] for words in given.values()} == {"seed=1"}
    assert all("train.lr=0.002" in words for words in given.values())


@pytest.mark.parametrize(("replicas", "limit"), [(2, 2.5), (4, 3.25), (8, 3.625)])
def test_the_limit_is_that_of_a_straggler(replicas, limit):
    assert plan.limit(STRAGGLER, replicas) == pytest.approx(limit)
    assert plan.limit(read(["bench.scenario=none"]), replicas) is None


def test_jitter_has_the_mean_of_the_device_and_a_limit_of_its_own():
    bench = read(["bench.scenario=jitter", "bench.steps=8000"])
    (times, *_) = plan.device_times(bench, 2, 0, 4000)
    assert sum(times) / len(times) == pytest.approx(0.1, rel=0.1)
    assert times == plan.device_times(bench, 4, 0, 4000)[0], "the same whoever asks"
    assert 1.3 < (plan.limit(bench, 2) or 0) < (plan.limit(bench, 4) or 0)


def test_a_dry_run_says_what_would_be_run():
    text = "\n".join(plan_lines(Benchmark.read(["model=tiny", "topology.replicas=4"])))
    assert "3.25 times as fast as lock-step" in text
    assert "34 runs" in text
    assert "kpool-lr0.5-seed0" in text


def test_what_is_said_to_run_is_what_runs(tmp_path):
    """Runs are listed seed after seed; those that share processes are made first."""
    bench = read(["bench.seeds=[0,1]", "bench.methods=[ddp,kpool,drop_slowest]", "bench.lr_scales=[1]"])
    every = plan.arms(bench, 4)
    runs = plan.measured(bench, {arm.name: 1.0 for arm in every}, every)
    folder = Folder(tmp_path)
    keys = [run.key for run in left(folder, runs)]
    assert keys == [f"{name}-lr1-seed{seed}" for name in ("ddp", "drop-slowest", "kpool") for seed in (0, 1)]
    assert [run.key for together in plan.sessions(left(folder, runs)) for run in together] == keys
    folder.write(folder.measured(keys[0]), {})
    assert [run.key for run in left(folder, runs)] == keys[1:]


# What it says


def curve(final: float, seconds: float, tokens: float = 1000.0) -> tuple[Point, ...]:
    """From 5.0 in a straight line."""
    return (Point(0.0, 0.0, 5.0), Point(seconds, tokens, final))


def outcome(final: float, seconds: float, replicas: int = 4, sent: int = 1000) -> MethodOutcome:
    shares = tuple(Share(60, 6.0 if replica < 3 else 24.0, 0) for replica in range(replicas))
    return MethodOutcome(curve(final, seconds), seconds, sent, shares)


def compared(**finals_and_seconds: tuple[float, float]):
    """A report of three seeds whose times differ by a hundredth from each other."""
    methods = ",".join(name for name in finals_and_seconds)
    bench: Bench = read([f"bench.methods=[{methods}]", "bench.lr_scales=[1]"])
    every = plan.arms(bench, 4)
    found = {}
    for run in plan.measured(bench, {arm.name: 1.0 for arm in every}, every):
        final, seconds = finals_and_seconds[run.arm.name]
        found[run.key] = outcome(final, seconds * (1 + 0.01 * run.seed), run.arm.replicas)
    return bench, every, found, report(bench, every, {arm.name: 1.0 for arm in every}, found, 2e-3, 4)


def test_intervals_are_students():
    assert estimate([1.0, 2.0, 3.0]).high == pytest.approx(2 + 4.303 / math.sqrt(3))
    assert estimate([2.0]).low is None
    both = ratio([2.0, 8.0], [1.0, 2.0])
    assert both.mean == pytest.approx(math.sqrt(2 * 4))
    assert ratio([3.0, 6.0, 9.0], [1.0, 2.0, 3.0]).low == pytest.approx(3.0), "pairs: what seeds share cancels"


def test_the_target_is_crossed_between_two_points():
    line = curve(4.0, 10.0)
    assert crossing(line, 4.5) == Point(5.0, 500.0, 4.5)
    assert crossing(line, 3.9) is None
    assert crossing(line, 6.0) == line[0]
    assert at(line, "tokens", 250.0) == pytest.approx(4.75)
    assert at(line, "at_s", 11.0) is None


def test_each_arm_gets_the_rate_with_the_lowest_loss():
    bench = read(["bench.methods=[ddp,kpool]", "bench.lr_scales=[1,2]"])
    every = plan.arms(bench, 4)
    grid = plan.tuning(bench, every)
    losses = dict(zip([run.key for run in grid], (4.2, 4.1, 4.0, 4.3), strict=True))
    found = {key: outcome(loss, 1.0) for key, loss in losses.items()}
    assert best_scales(grid, found, bench, every) == {"ddp": 2.0, "kpool": 1.0}


def test_a_fleet_with_a_straggler_is_told_to_use_the_pool():
    _, _, _, found = compared(ddp=(4.0, 24.0), drop_slowest=(4.0, 8.0), kpool=(4.0, 7.6))
    rows = {row.arm: row for row in found.rows}
    assert found.target == pytest.approx(4.04)
    assert rows["kpool"].speedup.mean == pytest.approx(24 / 7.6)
    assert rows["ddp"].speedup is None
    assert rows["ddp"].goodput == pytest.approx(240 / 24.24 / 32.5, rel=0.01)
    assert found.paste == ("train.lr=0.002",)
    assert found.advice[0].startswith("kpool: the target in 7.")


def test_where_the_pool_is_not_soonest_it_is_said():
    _, _, _, found = compared(ddp=(4.0, 24.0), drop_slowest=(4.0, 6.0), kpool=(4.0, 7.6))
    assert found.paste == ("topology.replicas=3", "train.lr=0.002")
    assert results.summary(found)[-2].startswith("recommended: leave the slowest replica out")
    assert results.summary(found)[-1].startswith("kpool takes 1.27"), "that it is later is no recommendation"
    assert found.advice[1] == "kpool takes 1.27 times as long, which is clearly later over these seeds"
    _, _, _, found = compared(ddp=(4.0, 6.0), kpool=(4.5, 1.0))
    assert found.rows[1].time_s is None
    assert results.cells(found)[2][2] == "0 of 3 seeds"
    assert found.advice[1].startswith("K-Pool did not reach it")


def test_the_table_fits_into_the_window_with_every_figure(tmp_path):
    _, _, _, found = compared(ddp=(4.0, 24.0), drop_slowest=(4.0, 8.0), kpool=(4.0, 7.6))
    whole, narrow = (results.screen(found, {}, tmp_path, width).partition("target:")[0] for width in (None, 80))
    assert [line.split()[0] for line in whole.split("\n")[1:5]] == ["method", "ddp", "drop_slowest", "kpool"]
    assert max(map(len, whole.splitlines())) > 80 >= max(map(len, narrow.splitlines()))
    assert all(row.arm in narrow and f"{row.time_s.mean:.1f}" in narrow for row in found.rows)


def test_what_is_left_behind_can_be_read():
    bench, every, found, said = compared(ddp=(4.0, 24.0), kpool=(4.0, 7.6))
    runs = plan.measured(bench, {arm.name: 1.0 for arm in every}, every)
    told = results.Told(bench, ("model=tiny",), 4, said, tuple(runs), found, {"mbit_s": 4.1})
    value = json.loads(json.dumps(results.as_json(told)))
    assert [row["arm"] for row in value["report"]["rows"]] == ["ddp", "kpool"]
    assert len(value["runs"]) == 6
    table = results.as_table(said, {}).splitlines()
    assert len(table) == 4
    assert len({line.count("|") for line in table}) == 1
    html = page(told)
    assert html.count("<svg") == html.count("</svg>") == 6
    for drawing in re.findall("<svg.*?</svg>", html):
        ElementTree.fromstring(drawing)  # well-formed
    assert "nan" not in html
    assert all(f">{word}<" in html for word in ("kpool", "4.1", "kpool-lr1-seed2"))


def test_no_label_is_cut_off():
    rows = [("kpool", estimate([1.0, 2.0]), "1.50"), ("kpool kpool.k=8 kpool.payload=bf16", None, "2 of 3 seeds")]
    rows += [(f"kpool {' '.join(['kpool.min_steps=2'] * 5)}", estimate([3.0, 3.1]), "3.05")]
    long = plots.Line("ddp", [curve(4.0, 1000.0, 2_000_000.0)])
    for drawing in (plots.bars(rows, "goodput", 4.0), *(plots.curves([long], x, x, 4.1) for x in ("at_s", "tokens"))):
        page_width = float(drawing.split('"')[1].split()[2])
        for text in ElementTree.fromstring(drawing).iter("text"):
            if "transform" not in text.attrib:
                width = 6.2 * len(text.text)  # of this font's mean letter
                left = (
                    float(text.get("x")) - {"start": 0.0, "middle": width / 2, "end": width}[text.get("text-anchor")]
                )
                assert 0 <= left <= left + width <= page_width, text.text


@pytest.mark.parametrize("how", ["reader gone", "hung up"])
@pytest.mark.parametrize("plain", [True, False])
def test_a_benchmark_outlasts_its_terminal(how, plain, xterm, tmp_path):
    bench = read(["bench.methods=[kpool]", "bench.lr_scales=[1]"])
    runs = plan.measured(bench, {"kpool": 1.0}, plan.arms(bench, 4))
    out, log, hung_up = Tty(), tmp_path / "console.log", [False]
    with Display(out, plain, Eta(lambda run: 10.0), log, lambda: hung_up[0], lambda path: path.open("a")) as shown:
        shown.expect(3, runs)
        out.breaks, hung_up[0] = how == "reader gone", how == "hung up"
        shown.turn()
        shown.done(runs[0])
    said = log.read_text()
    assert said.index("detached") < said.index(f"{runs[0].key} took")
    assert all(line.isprintable() for line in said.splitlines())


def test_the_time_that_is_left_is_learnt_from_what_runs_have_taken(tmp_path):
    bench = read(["bench.methods=[kpool]", "bench.lr_scales=[1]"])
    runs = plan.measured(bench, {"kpool": 1.0}, plan.arms(bench, 4))
    now_s, stream = [0.0], io.StringIO()
    shown = Display(stream, True, Eta(lambda run: 10.0), tmp_path / "log", clock_s=lambda: now_s[0])
    shown.expect(3, runs)
    now_s[0] = 15.0
    shown.done(runs[0])
    assert "1/3 runs, about 0:30 left" in stream.getvalue()


def test_a_method_has_one_colour_in_every_benchmark():
    all_of_them = plots.colours([*METHODS, "kpool kpool.k=8"])
    assert len(set(all_of_them.values())) == len(METHODS) + 1
    for few in (["kpool"], ["ddp", "kpool"], ["kpool", "kpool kpool.k=8"]):
        assert plots.colours(few) == {name: all_of_them[name] for name in few}
