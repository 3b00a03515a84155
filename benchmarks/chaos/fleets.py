"""Real runs of `tsugi finetune` with real faults: killed, frozen, without a hub, cut off. Each returns its figures.

Steps are emulated (the tiny model, and a tenth of a second of waiting in each), so that what is measured is
coordination and not two cores that are shared by six models.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.faults import books
from tests.faults.fleet import TINY, Fleet
from tests.faults.injector import Injector, NotFired
from tests.faults.points import HUB, Fault, Fired, Kind, State
from tests.faults.wire import HERE, THERE, Weather, Wire
from tests.support import processes_of

STEP_S = 0.1
MID_ROUND = (State.FIRED, State.GATHERING, State.REDUCED, State.REPORTED, State.COMMITTING)
HUB_STATES = (
    State.WRITTEN_FIRE, State.WRITING_REDUCED, State.WRITTEN_REDUCED, State.WRITING_COMMIT, State.WRITTEN_COMMIT,
    State.WRITTEN_LEASE, State.WRITING_FIRE, State.WRITING_LEASE,
)  # fmt: skip


def words(replicas: int, steps: int, *more: str) -> tuple[str, ...]:
    waits = ",".join(f"{replica}:{STEP_S}" for replica in range(replicas))
    run = (f"topology.replicas={replicas}", f"train.max_steps={steps}", f"fault.data_wait=[{waits}]")
    return (*TINY, *run, "train.checkpoint.every_s=5", *more)


@contextmanager
def fleet(faults: Sequence[Fault], settings: Sequence[str], **more: Any) -> Iterator[Fleet]:
    """A run in a scratch directory, and nothing of it afterwards."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        cwd = Path(scratch)
        injector = Injector(cwd / "faults", tuple(faults))
        begun = Fleet(cwd / "run", settings, injector, **more)
        try:
            yield begun
        finally:
            begun.stop()


def close(begun: Fleet) -> dict[str, Any]:
    """The run ends well; every fault has fired, all rules hold, nothing is left running."""
    code, said = begun.end(600.0)
    if code:
        raise AssertionError(said[-2000:])
    for other in begun.others:
        other.communicate(timeout=60.0)
    begun.traps.check()
    found = books.check(begun.paths, begun.traps.folder)
    orphans = processes_of(begun.paths.root)
    if orphans:
        raise AssertionError(f"orphans: {orphans}")
    return {**vars(found), "digests_per_version": 1, "orphans": 0}


def faults_of(begun: Fleet) -> list[Fired]:
    return [fired for _, fired in sorted(begun.traps.fired.items())]


def without(begun: Fleet, fired: Fired) -> dict[str, Any]:
    """When the hub went on without a replica, and the next commit after that, in seconds since the fault."""
    replica, at_s = fired.fault.replica, fired.time_s
    left = next(each for each in begun.told("left", replica=replica) if each["time_s"] >= at_s - 0.005)
    commit_s = next(each for each in begun.commits_s() if each >= left["time_s"])
    noticed, commit = round(left["time_s"] - at_s, 3), round(commit_s - at_s, 3)
    return {"state": fired.fault.state, "noticed_s": noticed, "commit_s": commit, "reason": left["reason"]}


def killed(count: int) -> dict[str, Any]:
    """SIGKILL in the middle of a round, in fleets of six that lose five, one after another."""
    trials, rules = [], []
    while len(trials) < count:
        states = [MID_ROUND[(len(trials) + each) % len(MID_ROUND)] for each in range(min(5, count - len(trials)))]
        faults = [Fault(Kind.KILL, n + 1, 20 + 30 * n, state) for n, state in enumerate(states)]
        with fleet(faults, words(6, 700, "topology.max_restarts=0")) as begun:
            rules.append(close(begun))
            trials += [without(begun, fired) for fired in faults_of(begun)]
            print("killed", trials[-len(states) :], rules[-1], flush=True)
    return {"trials": trials, "rules": rules}


def frozen(count: int) -> dict[str, Any]:
    """SIGSTOP of replicas that `tsugi join` brought, and SIGCONT ten seconds later: nobody ends them meanwhile."""
    trials, rules = [], []
    while len(trials) < count:
        here = min(3, count - len(trials))
        faults = [Fault(Kind.STOP, n + 1, 20 + 60 * n, MID_ROUND[n], 10.0) for n in range(here)]
        settings = words(here + 1, 900, "topology.here=1", "topology.max_restarts=3")
        with fleet(faults, settings) as begun:
            for number in range(here):
                begun.join(f"joined{number}")
            begun.await_true(lambda b=begun, h=here: len(faults_of(b)) == h, "the faults", 500.0)
            rules.append(close(begun))
            told = books.traces(begun.traps.folder)
            for fired in faults_of(begun):
                woke_s = fired.at_s + fired.fault.for_s
                after = [each for each in told[fired.pid, 1].lines if each["at_s"] > woke_s]
                stale = sum(each["state"] == State.COMMITTED for each in after)
                trials.append({**without(begun, fired), "woken_at_s": fired.fault.for_s, "stale_commits": stale})
            print("frozen", trials[-here:], rules[-1], flush=True)
    return {"trials": trials, "rules": rules}


def without_hub(count: int) -> dict[str, Any]:
    """The hub's process is killed where a record is about to be written, or has been, and another goes on."""
    faults = [Fault(Kind.KILL, HUB, 8, HUB_STATES[n % len(HUB_STATES)]) for n in range(count)]
    trials: list[dict[str, Any]] = []
    with fleet(faults, words(2, 600 + 100 * count, "train.lease_ahead_s=10"), command="hub") as begun:
        for replica in ("0", "1"):
            run = ("--run-dir", str(begun.paths.root), "--replica", replica)
            begun.others.append(begun.start(*run, module="tsugi_cli.finetune.worker"))
        while len(trials) < count:
            begun.launcher.wait(300.0)
            dead = max(faults_of(begun), key=lambda fired: fired.at_s)
            before = steps_of(begun)
            begun.launcher.communicate()
            time.sleep(2.0)
            started_s = time.time()
            begun.launcher = begun.start("hub", "--plain", "--run", str(begun.paths.root))
            begun.await_true(lambda b=begun, s=started_s: any(each > s for each in b.commits_s()), "a commit", 120.0)
            commit_s = next(each for each in begun.commits_s() if each > started_s)
            trained = sum(steps_of(begun)) - sum(before)
            figures = {"commit_after_start_s": commit_s - started_s, "commit_after_kill_s": commit_s - dead.time_s}
            rounded = {name: round(value, 2) for name, value in figures.items()}
            trials.append({"state": dead.fault.state, **rounded, "steps_meanwhile": trained})
            print("hub", trials[-1], flush=True)
        rules = close(begun)
    return {"trials": trials, "rules": [rules]}


def steps_of(begun: Fleet) -> list[int]:
    """Steps of every replica, as its own process counts them."""
    return [len(each.of(State.STEP)) for each in books.traces(begun.traps.folder).values()]


def cut(seconds: Sequence[float], one_way: bool = False) -> dict[str, Any]:
    """One of three replicas on another machine (a namespace) is cut off so long, once for each length."""
    wire = Wire()
    wire.lay()
    at = (f"sideband.bind={HERE}", f"topology.address={HERE}", "topology.here=2", "topology.max_restarts=6")
    at += ("topology.trust_network=true",)
    trials: list[dict[str, Any]] = []
    steps = int(sum(seconds) * 25 + len(seconds) * 600 + 600)
    try:
        with fleet((), words(3, steps, *at), prefix=wire.inside(wire.here)) as begun:
            begun.join("there", f"topology.address={THERE}", prefix=wire.inside(wire.there))
            for each in seconds:
                trials.append(_one_cut(begun, wire, each, one_way))
                print("cut", trials[-1], flush=True)
            rules = close(begun)
    finally:
        wire.tear()
    return {"trials": trials, "rules": [rules]}


def _one_cut(begun: Fleet, wire: Wire, seconds: float, one_way: bool) -> dict[str, Any]:
    begun.await_true(lambda: members(begun) == [0, 1, 2], "all three", 300.0)
    time.sleep(3.0)
    before, began_s, mono_s = wire.counts["cut"], time.time(), time.monotonic()
    wire.weather = Weather(cut=(1,) if one_way else (0, 1))
    time.sleep(seconds)
    wire.heal()
    healed_s, healed_mono_s = time.time(), time.monotonic()
    if wire.counts["cut"] == before:
        raise NotFired("nothing was cut")
    begun.await_true(lambda: begun.commits_s()[-1] > healed_s, "a commit", 60.0)
    commits = [each for each in begun.commits_s() if each >= began_s]
    left = [each["time_s"] - began_s for each in begun.told("left", replica=2) if each["time_s"] >= began_s]
    minority = [
        line
        for process in books.traces(begun.traps.folder).values()
        if process.replica == 2
        for line in process.of(State.COMMITTED)
        if mono_s + 1.0 < line["at_s"] < healed_mono_s
    ]
    until = [each for each in commits if each < healed_s] or commits[:1]
    gap = max(after - before for before, after in pairwise([began_s, *until]))
    begun.await_true(lambda: members(begun) == [0, 1, 2], "all three again", 300.0)
    back = [each["time_s"] for each in begun.told("generation") if 2 in each["members"] and each["time_s"] > healed_s]
    return {
        "seconds": seconds,
        "one_way": one_way,
        "left_after_s": round(left[0], 2) if left else None,
        "longest_gap_of_the_majority_s": round(gap, 2),
        "minority_commits": len(minority),
        "healed_after_s": round(back[0] - healed_s, 2) if back else 0.0,
    }


def members(begun: Fleet) -> list[int]:
    generations = begun.told("generation")
    left = [
        each["replica"] for each in begun.told("left") if generations and each["time_s"] > generations[-1]["time_s"]
    ]
    return [each for each in generations[-1]["members"] if each not in left] if generations else []
