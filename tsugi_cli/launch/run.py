"""The launching process of `tsugi finetune` and `tsugi hub`: configuration, hub, agents, console."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

from tsugi_cli.config.compose import config_hash, resolved_yaml, to_tree
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.console.choose import lasting
from tsugi_cli.console.console import Console, ConsoleSink
from tsugi_cli.finetune.model import local_folder
from tsugi_cli.preload.client import ForkServer
from tsugi_cli.record.answer import Answer
from tsugi_cli.record.recorder import Recorder
from tsugi_cli.record.run_dir import RunPaths
from tsugi_cli.record.sinks import Sinks
from tsugi_cli.record.track import Track
from tsugi_cli.signals import Signals
from tsugi_kpool.errors import ConfigError, ExitCode, OverError
from tsugi_kpool.sideband import keys as sideband_keys

from .bringing import bring_home
from .checkpointing import Checkpoints
from .closing import close
from .estimate import estimate
from .hub import invitation, measured, serve
from .others import commands, others_of
from .plan import Plan
from .preloading import preload
from .preparing import Onlooker, Stopped
from .request import RunRequest
from .restarts import Restarts
from .supervisor import Supervisor
from .task import follow, follower
from .watch import RunningFleet, watch

AGENTS_SHOWN = 16
"""Agents of a plan that are shown; more would say nothing new."""


def finetune(
    overrides: Sequence[str], dry_run: bool, plain: bool, out: Answer, forks: ForkServer | None = None
) -> int:
    """Run `tsugi finetune`; returns the exit code.

    Args:
        overrides: The command line.
        dry_run: Print the plan, start nothing.
        plain: Lines instead of the live console.
        out: Where it answers.
        forks: A fork server that has begun to import; None: agents are started anew.

    Raises:
        TsugiError: configuration or data are wrong, or a replica failed.
    """
    if (spec := follower(overrides)) is not None and not dry_run:
        if forks is not None:
            forks.close()  # it joins, as every task but the first
        return follow(spec, plain, out)
    if dry_run:
        return _print_plan(RunRequest.read(overrides, dry_run), out)
    now = datetime.now()
    with Signals() as signals:
        try:
            with Onlooker(out.people, plain, signals) as onlooker:
                request = RunRequest.read(overrides, onlooker=onlooker, composed=partial(preload, forks))
        except Stopped:
            return signals.exit_code
        paths = request.settle(now)
        with lasting(out, plain, signals, paths.console) as console:
            console.message(f"{request.spec.name}: {paths.root}")
            for note in request.notes():
                console.message(note)
            return _run(request, paths, request.plan(paths), console, signals, forks)


def hub_alone(overrides: Sequence[str], run: Path | None, plain: bool, out: Answer) -> int:
    """Run `tsugi hub`: the hub of a new run whose replicas all join, or the hub of an existing run directory.

    Raises:
        OverError: the run has ended.
        TsugiError: configuration or data are wrong, or it failed.
    """
    if run is None:
        return finetune([*overrides, "topology.here=0"], False, plain, out)
    paths = RunPaths(run.resolve())
    if overrides:
        raise ConfigError([f"{overrides[0]}: the settings of an existing run cannot be changed"])
    if paths.summary.exists():
        raise OverError(
            f"{paths.root}: this run has ended; `tsugi finetune resume={paths.root}` goes on with another"
        )
    if not paths.config.exists():
        raise ConfigError([f"{paths.root}: no run directory, it has no config.yaml"])
    request = RunRequest.of(paths)
    plan = replace(request.plan(paths), agents=(), elsewhere=request.spec.topology.replicas)
    with Signals() as signals, lasting(out, plain, signals, paths.console) as console:
        console.message(f"{request.spec.name}: {paths.root}")
        return _run(request, paths, plan, console, signals)


def _print_plan(request: RunRequest, out: Answer) -> int:
    """Print the resolved configuration and what would be started (--dry-run)."""
    spec = request.spec
    plan = request.plan(RunPaths(Path(spec.runs_dir) / f"<time>-{spec.name}"))
    report = None if request.facts is None else request.facts.report
    facts = plan.facts | estimate(spec, local_folder(spec.model), request.tokens(), report)
    agents = {f"replica {agent.replica}": " ".join(agent.argv) for agent in plan.agents[:AGENTS_SHOWN]}
    if len(plan.agents) > AGENTS_SHOWN:
        agents["and"] = f"{len(plan.agents) - AGENTS_SHOWN} more replicas in the same way"
    others = {name: shlex.join(argv) for name, argv in commands(spec).items()}
    shown = facts | agents | others | {"hash": config_hash(spec)}
    width = max(len(name) for name in facts)
    words = [resolved_yaml(spec), *(f"{name:>{width}}  {text}" for name, text in shown.items())]
    notes = request.setting_notes()
    told = {"config": to_tree(spec), "plan": shown, "notes": notes}
    out.tell(told, [*words, *notes, "Dry run: nothing was started."])
    return ExitCode.OK


def _run(
    request: RunRequest,
    paths: RunPaths,
    plan: Plan,
    console: Console,
    signals: Signals,
    forks: ForkServer | None = None,
) -> int:
    """Start hub and agents, watch them to the end, leave nothing running."""
    spec = request.spec
    recorder = Recorder(paths)
    checkpoints = Checkpoints(request, paths, plan.hub, recorder.tell)
    # The hub listens before any agent starts: workers read its address from the run's key file.
    known = request.meeting.own_keys() if request.meeting is not None else None
    serving = serve(spec, paths, plan.hub, checkpoints.tell, known)
    hub = serving.hub
    supervisor, others = Supervisor(plan.agents, paths, forks), others_of(spec, paths, request.meeting)
    restarts, elsewhere = Restarts(spec.topology.max_restarts), plan.elsewhere + plan.hub.spare
    sinks = Sinks([ConsoleSink(console), recorder], recorder.tell)
    checkpoints.arrivals = serving.arrivals
    fleet = RunningFleet(
        hub, supervisor, recorder, console, checkpoints, sinks, spec.train.grace_s, elsewhere, others, restarts
    )
    try:
        for sink in (measured(spec, recorder.tell), tracked(spec, paths)):
            if sink is not None:
                sinks.add(sink)
        if plan.elsewhere:
            console.message(f"{plan.elsewhere} of {spec.topology.replicas} replicas are to join from elsewhere")
        if plan.hub.spare:
            console.message(f"{plan.hub.spare} more replicas may join when the run has begun")
        if elsewhere:
            console.message(others.words or invitation(paths, console.seen, spec))
        supervisor.start()
        others.invite(sideband_keys.load(paths.keys))
        failure = watch(fleet, signals)
        if failure is None:
            bring_home(fleet, serving, paths, signals)
    finally:
        supervisor.stop()
        # In this order each may still hear from the one before it: replicas report their last files to the hub, the
        # hub to the checkpoints, and all leave events for the sinks.
        fleet.process_watch.close()
        try:
            serving.stop()
        finally:  # it raises what has ended the hub's thread: nobody else's machine may be left running for that
            others.stop(at_once=signals.count > 1 or not hub.status().tokens)
        checkpoints.close()
        fleet.turn()
        sinks.close()
        for event in recorder.pending():  # such as a tracker that could not send all
            console.event(event)
    return close(request, paths, fleet, signals, failure)


def tracked(spec: RunSpec, paths: RunPaths) -> Track | None:
    """Return the started sink of the trackers, if any are asked for."""
    if not spec.track:
        return None
    track = Track(list(spec.track), paths.root, spec.name, to_tree(spec))
    track.start()
    return track
