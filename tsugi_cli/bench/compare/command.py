"""`tsugi bench`: from a command line to a finished report. The story of one benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Any

from tsugi_cli.bench.links.hosts import Here, fleet
from tsugi_cli.config.compose import config_hash, resolved_yaml
from tsugi_cli.console.format import clock
from tsugi_cli.console.terminal import is_terminal, terminal
from tsugi_cli.finetune.functions import import_function
from tsugi_cli.launch import preparing
from tsugi_cli.record.answer import Answer
from tsugi_cli.record.atomic import write_atomically
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.signals import Signals
from tsugi_kpool.errors import ExitCode

from . import plan, results, runner
from .analysis import ComparisonReport, MethodOutcome, Share, best_scales, report
from .display import Display, Eta
from .folder import Folder, make
from .page import page
from .plan import Run
from .pool import run_pool
from .request import Benchmark, asked
from .results import Told
from .statistics import Point


def bench(tokens: Sequence[str], dry_run: bool, plain: bool, out: Answer) -> int:
    """Run `tsugi bench`; returns the exit code.

    Raises:
        TsugiError: configuration or data are wrong, or a run failed. What is finished is kept.
    """
    folder, benchmark = asked(tokens)
    if dry_run:
        lines = plan_lines(benchmark)
        out.tell({"plan": lines}, lines)
        return ExitCode.OK
    folder, eta = folder or _new(benchmark), Eta(benchmark.predicted_s)
    with (
        Signals() as signals,
        Display(out.people, plain, eta, folder.console, lambda: signals.hung_up) as display,
    ):
        display.message(f"{benchmark.bench.name}: {folder.root}")
        try:
            with fleet(benchmark.bench.scenario, benchmark.replicas) as machines:
                if links := machines.measured():
                    folder.write(folder.links, links)
                found = compared(benchmark, folder, machines, signals, display)
                if links:
                    folder.write(folder.links, {**links, **machines.counted()})
        except runner.Stopped:
            display.message(
                f"stopped; finished runs are kept. To go on: tsugi bench {quote(f'resume={folder.root}')}"
            )
            return signals.exit_code
    write(benchmark, folder, found)
    if out.json:
        out.put(folder.read(folder.json))
    else:
        width = terminal(out.people).width if is_terminal(out.people) else None
        out.people.write(results.screen(found, measured_links(folder), folder.page, width))
    return ExitCode.OK


def compared(
    benchmark: Benchmark, folder: Folder, machines: Here, signals: Signals, display: Display
) -> ComparisonReport:
    """Tune every arm, run every arm on every seed, and compare."""
    bench, arms = benchmark.bench, benchmark.arms
    prepare(benchmark, folder, signals)
    grid = plan.tuning(bench, arms)
    everything = plan.expected(bench, arms)
    display.expect(len(everything), left(folder, grid) + left(folder, everything[len(grid) :]))
    carry_out(benchmark, folder, grid, machines, signals, display)
    chosen = best_scales(grid, outcomes(folder, grid), bench, arms)
    runs = plan.measured(bench, chosen, arms)
    display.expect(len(everything), left(folder, runs))
    carry_out(benchmark, folder, runs, machines, signals, display)
    return report(bench, arms, chosen, outcomes(folder, runs), benchmark.spec.train.lr, benchmark.replicas)


def carry_out(
    benchmark: Benchmark, folder: Folder, runs: Sequence[Run], machines: Here, signals: Signals, display: Display
) -> None:
    """Make all runs that are not finished, and evaluate them."""
    for together in plan.sessions(left(folder, runs)):
        display.begin()
        words = [benchmark.overrides(run) for run in together]
        if together[0].arm.synchronous:
            # What is only tuned needs no slow links: its loss does not depend on them.
            where = machines if together[0].emulated else Here()
            runner.run_peers(folder, together, words, benchmark.bench.sync_every, where, signals, display)
        else:
            run_pool(folder, together[0], words[0], machines, signals, display)
    if any(not folder.losses(run.key).exists() for run in runs):
        runner.evaluate(folder, signals, display)


def left(folder: Folder, runs: Sequence[Run]) -> list[Run]:
    """Return the runs that are not finished, in the order in which they are made."""
    unfinished = [run for run in runs if not runner.finished(folder, run)]
    return [run for together in plan.sessions(unfinished) for run in together]


def outcomes(folder: Folder, runs: Sequence[Run]) -> dict[str, MethodOutcome]:
    """Return the outcomes of finished and evaluated runs."""
    found = {}
    for run in runs:
        measured, losses = folder.read(folder.measured(run.key)), folder.read(folder.losses(run.key))
        curve = tuple(
            Point(moment["at_s"], moment["tokens"], loss)
            for moment, loss in zip(measured["moments"], losses, strict=True)
        )
        shares = tuple(Share(**each) for each in measured["replicas"])
        found[run.key] = MethodOutcome(curve, measured["wall_s"], measured["sent_bytes"], shares)
    return found


def measured_links(folder: Folder) -> dict[str, Any]:
    """Return measurements of the scenario's links; nothing where it has none."""
    return dict(folder.read(folder.links)) if folder.links.exists() else {}


def write(benchmark: Benchmark, folder: Folder, found: ComparisonReport) -> None:
    """Write bench.json, the table and the page."""
    bench, arms = benchmark.bench, benchmark.arms
    grid = plan.tuning(bench, arms)
    chosen = {row.arm: row.lr_scale for row in found.rows}
    runs = list(dict.fromkeys([*grid, *plan.measured(bench, chosen, arms)]))
    told = Told(
        bench, benchmark.base, benchmark.replicas, found, tuple(runs), outcomes(folder, runs), measured_links(folder)
    )
    folder.write(folder.json, results.as_json(told))
    write_atomically(folder.table, results.as_table(found, told.links))
    write_atomically(folder.page, page(told))


def plan_lines(benchmark: Benchmark) -> list[str]:
    """Return what would be run, and for how long (--dry-run)."""
    bench, arms = benchmark.bench, benchmark.arms
    runs = plan.expected(bench, arms)
    left_s = Eta(benchmark.predicted_s).left_s(runs, 0.0)
    limit = plan.limit(bench, benchmark.replicas)
    steps = plan.step_count(bench, benchmark.replicas)
    facts = {
        "scenario": f"{bench.name}: {bench.scenario.about}",
        "fleet": f"{benchmark.replicas} replicas on this machine",
        "run": f"{steps} steps of the fleet, {steps * benchmark.spec.train.step_samples} samples",
        "device": f"emulated, {bench.device_step_s:g} s for a step" if bench.scenario.emulate else "this machine",
        "limit": "not known" if limit is None else f"{limit:.2f} times as fast as lock-step",
        "rates": f"train.lr={benchmark.spec.train.lr:g} times {', '.join(f'{each:g}' for each in bench.lr_scales)}",
        "seeds": ", ".join(map(str, bench.seeds)),
        "methods": ", ".join(arm.name for arm in arms),
        "time": f"{len(runs)} runs, about {clock(left_s)}",
    }
    width = max(map(len, facts))
    lines = [f"{name:>{width}}  {text}" for name, text in facts.items()]
    return [*lines, *(f"{'':>{width}}  {run.key}" for run in runs), "Dry run: nothing was started."]


def prepare(benchmark: Benchmark, folder: Folder, signals: Signals) -> None:
    """Prepare model and data before any clock runs.

    Raises:
        TsugiError: they cannot be had.
        Stopped: the user wants to stop.
    """
    paths = RunPaths(folder.root)
    write_atomically(paths.config, resolved_yaml(benchmark.spec))
    write_atomically(paths.config_hash, config_hash(benchmark.spec) + "\n")
    if benchmark.spec.data.scorer is not None:
        import_function(benchmark.spec.data.scorer, "data.scorer")
    try:
        preparing.prepare(benchmark.spec, preparing.Onlooker(signals=signals))
    except preparing.Stopped as stopped:
        raise runner.Stopped from stopped


def _new(benchmark: Benchmark) -> Folder:
    folder = make(Path(benchmark.spec.runs_dir), benchmark.bench.name, datetime.now())
    folder.write_request(list(benchmark.base), list(benchmark.tokens))
    return folder
