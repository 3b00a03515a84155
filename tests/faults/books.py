"""What must hold after any run, whatever has happened in it: zero tolerance.

The hub's journal and events are held against what the replicas' processes themselves wrote down (`inside.Trap.tell`).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.checkpoints import verified
from tsugi_kpool.core.checkpoint import BadCheckpoint, version_of
from tsugi_kpool.core.journal import parse
from tsugi_kpool.core.messages import Reduced
from tsugi_kpool.core.records import GenerationOpened, Joined, Leased, Left, RoundCommitted, RoundFired, RoundReduced

from .points import State


@dataclass
class Process:
    """What one incarnation of a replica wrote down."""

    replica: int
    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def samples(self) -> int:
        return max((each.get("samples", 0) for each in self.lines), default=0)

    @property
    def produced(self) -> int:
        """Tokens, summed over adapters."""
        return max((each.get("produced", 0) for each in self.lines), default=0)

    @property
    def shipped(self) -> dict[int, int]:
        """Tokens by round, summed over adapters."""
        return {each["round"]: each["tokens"] for each in self.of(State.FIRED)}

    def of(self, state: State) -> list[dict[str, Any]]:
        return [each for each in self.lines if each["state"] == state]


@dataclass(frozen=True)
class Books:
    """Sums that hold."""

    versions: int
    samples: int
    processed: int
    """By all processes, as they counted; those that were killed may have done one step more."""
    lost_tokens: int
    """Buffered by processes that have left, summed over adapters: trained on again by others."""
    replayed: int
    checkpoints: int


Life = tuple[int, int]
"""Process id, and which of that process's incarnations."""


def traces(folder: Path) -> dict[Life, Process]:
    """What every incarnation did."""
    found: dict[Life, Process] = {}
    for path in sorted(folder.glob("trace-*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                each = json.loads(line)
            except ValueError:
                continue  # killed while it wrote
            found.setdefault((each["pid"], each["life"]), Process(each["replica"])).lines.append(each)
    return found


def check(paths: RunPaths, folder: Path | None = None) -> Books:
    """Raises AssertionError when something does not hold.

    Args:
        paths: Of a run that has finished.
        folder: Of its injector: then the tokens are held against the processes' own books, too.
    """
    records = [each.record for each in parse(paths.journal.read_bytes()).entries]
    summary = json.loads(paths.summary.read_text())
    assert summary["outcome"] == "finished", summary["outcome"]
    versions = check_versions(records)
    check_positions(records, paths, summary["samples_total"])
    assert summary["samples"] == summary["samples_total"]
    processes = {pid: each for pid, each in traces(folder).items() if each.replica >= 0} if folder else {}
    lost = check_tokens(records, processes) if folder else 0
    processed = sum(each.samples for each in processes.values())
    return Books(
        versions, summary["samples"], processed, lost, summary["replayed"], check_checkpoints(paths.checkpoints)
    )


def check_versions(records: list[Any]) -> int:
    """Version = previous + 1, one digest on all members of its round; generations never go back."""
    commits = [each for each in records if isinstance(each, RoundCommitted)]
    assert [each.version for each in commits] == list(range(1, len(commits) + 1))
    fires = {each.fire.round: each.fire for each in records if isinstance(each, RoundFired)}
    reduced = defaultdict(list)
    for each in records:
        if isinstance(each, RoundReduced):
            reduced[each.reduced.round].append(each.reduced)
    for commit in commits:
        assert {each.digest for each in reduced[commit.round]} == {commit.digest}, f"round {commit.round}"
        said = {each.replica for each in reduced[commit.round]}
        assert said | left_in_rounds(records).get(commit.round, set()) == set(fires[commit.round].members)
    generations = [each.generation for each in records if isinstance(each, GenerationOpened)]
    assert all(before < after for before, after in pairwise(generations)), generations
    return len(commits)


def left_in_rounds(records: list[Any]) -> dict[int, set[int]]:
    """Who has left while a round went on that was committed: over an exchange it needs nobody who has gone."""
    found: defaultdict[int, set[int]] = defaultdict(set)
    number = 0
    for each in records:
        if isinstance(each, RoundFired):
            number = each.fire.round
        elif isinstance(each, Left):
            found[number].add(each.replica)
        elif isinstance(each, RoundCommitted | GenerationOpened):
            number = 0
    return found


def parts_of(records: list[Any]) -> dict[int, Reduced]:
    """What a member has said for all of each committed round."""
    committed = {each.round for each in records if isinstance(each, RoundCommitted)}
    said = [each.reduced for each in records if isinstance(each, RoundReduced) and each.reduced.weights]
    return {each.round: each for each in said if each.round in committed}


def check_positions(records: list[Any], paths: RunPaths, total: int) -> None:
    """Every position is durable once: by a process that has left, or by one that was there to the end."""
    told = [json.loads(line) for line in paths.events.read_bytes().splitlines() if line.endswith(b"}")]
    durable = {each["incarnation"]: each["durable"] for each in told if each["event"] == "left"}
    there, parts = dict[int, str](), parts_of(records)
    for each in records:
        if isinstance(each, Joined):
            there[each.hello.replica] = each.hello.incarnation
        elif isinstance(each, RoundFired) and each.fire.round in parts:
            part = parts[each.fire.round]
            for replica, until in zip(part.counted, part.durables, strict=True):
                durable[there[replica]] = max(durable.get(there[replica], 0), until)
    held: dict[int, list[int]] = {}
    incarnation: dict[int, str] = {}
    done: Counter[int] = Counter()
    for each in records:
        if isinstance(each, Joined):
            held[each.hello.replica], incarnation[each.hello.replica] = [], each.hello.incarnation
        elif isinstance(each, Leased):
            held[each.replica] += range(each.lease.start, each.lease.stop)
        elif isinstance(each, Left) and each.reason:
            done.update(held.pop(each.replica)[: durable[incarnation[each.replica]]])
    done.update(position for positions in held.values() for position in positions)
    assert set(done) == set(range(total)), f"{len(done)} of {total} positions"
    assert set(done.values()) == {1}, "a position that counts twice"


def check_tokens(records: list[Any], processes: dict[Life, Process]) -> int:
    """Committed + buffered = produced, for every process; what was buffered when it left is returned.

    What the hub has committed is what the members had shipped, to the token.
    """
    fires = {each.fire.round: each.fire for each in records if isinstance(each, RoundFired)}
    weights = {
        number: dict(zip(part.counted or fires[number].members, part.weights, strict=True))
        for number, part in parts_of(records).items()
    }
    committed = {each.round for each in records if isinstance(each, RoundCommitted)}
    shipped = {
        (each.replica, number): tokens for each in processes.values() for number, tokens in each.shipped.items()
    }
    for number in committed:
        for replica, tokens in weights[number].items():
            assert shipped[replica, number] == tokens, f"round {number}, replica {replica}"
    there = {each.hello.replica: each for each in records if isinstance(each, Joined)}
    left = {each.hello.incarnation for each in joined_that_left(records)}
    newest = {pid: max(life for of, life in processes if of == pid) for pid, _ in processes}
    lost = 0
    for (pid, life), process in processes.items():
        mine = process.replica
        counted = [t for number, t in process.shipped.items() if number in committed and mine in weights[number]]
        buffered = process.produced - sum(counted)
        assert buffered >= 0, f"process {pid} has shipped more than it produced"
        hello = there[process.replica].hello if process.replica in there else None
        if hello is not None and (pid, life) == (hello.pid, newest[pid]) and hello.incarnation not in left:
            assert buffered == 0, f"{buffered} tokens of replica {process.replica} are nowhere"
        lost += buffered
    return lost


def joined_that_left(records: list[Any]) -> list[Joined]:
    """Processes that have left in the middle of the run."""
    there: dict[int, Joined] = {}
    found = []
    for each in records:
        if isinstance(each, Joined):
            there[each.hello.replica] = each
        elif isinstance(each, Left) and each.reason:
            found.append(there.pop(each.replica))
    return found


def check_checkpoints(root: Path) -> int:
    """Every checkpoint that can be seen verifies; returns how many there are."""
    seen = [path for path in (root.iterdir() if root.exists() else ()) if version_of(path.name) is not None]
    for path in seen:
        try:
            verified(path)
        except BadCheckpoint as error:
            raise AssertionError(f"{path.name} can be seen and is bad: {error}") from error
    return len(seen)
