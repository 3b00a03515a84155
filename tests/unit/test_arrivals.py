"""A hub's machine without a replica makes checkpoints from what the first member of another machine gives it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from tests.support import await_true, hub_plan, keeps_events
from tsugi_cli.launch import arrivals as arrivals_module
from tsugi_cli.launch import incoming as incoming_module
from tsugi_cli.launch.arrivals import LEAST_ASKS_PER_S, Arrivals, Wanted
from tsugi_cli.launch.checkpointing import Checkpoints
from tsugi_cli.launch.fetching import ASKS_PER_S
from tsugi_cli.launch.giving import Giving
from tsugi_cli.launch.hub import pass_on
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.checkpoint import ANCHORS, FileFacts, part_name, scratch_name, sorted_names
from tsugi_kpool.core.effects import CheckpointOrdered, CheckpointPart
from tsugi_kpool.core.events import CheckpointFailed
from tsugi_kpool.core.messages import (
    CheckpointOffer,
    CheckpointSettled,
    DataPart,
    DataRequest,
    Saved,
    Slot,
    SlotRequest,
)
from tsugi_kpool.core.parcels import PART_BYTES
from tsugi_kpool.durable import write_file
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.observer import Observer

pytestmark = pytest.mark.timeout(200)

N = 4


class Home:
    """The hub's machine of a run whose two replicas are elsewhere."""

    def __init__(self, root: Path) -> None:
        plan = hub_plan(replicas=2, joinable=2, config="seed: 0", supervised=False, config_hash="c" * 64)
        self.server = HubServer(plan, RunKeys.generate(), keeps_events([]))
        paths = RunPaths(root)
        self.told: list = []
        self.ordered: list[frozenset[int]] = []
        """Whom the next checkpoint is not to come from, each time that one was ordered."""
        self.checkpoints = Checkpoints(request(), paths, plan, self.told.append)  # type: ignore[arg-type]
        self.store = self.checkpoints.store
        self.arrivals = Arrivals(self.store, lambda ticket: self.server.ask(lambda it: it.slots.of(ticket)), self.say)
        self.checkpoints.arrivals = self.arrivals
        self.server.take = lambda route, message: pass_on(Mock(), self.arrivals, route, message)
        self.keys = self.server.start("127.0.0.1", 0)
        self.arrivals.start()

    def say(self, route, message) -> None:
        self.server.deliver(route, message)

    def order(
        self, version: int, there: Path, members: tuple[int, ...] = (0, 1), final: bool = False, digests: tuple = ()
    ) -> None:
        """A round becomes a checkpoint, and its first member reports what it has written."""
        order = CheckpointOrdered(version, final, ((0, version),), 9, version, 1.0, members, min(members), digests)
        self.checkpoints.tell(order)
        for path in there.iterdir():
            facts = write_file(path, path.read_bytes())
            said = Saved(0, members[0], "", version, final, path.name, facts.bytes, facts.sha256)
            self.checkpoints.tell(CheckpointPart(said))

    def turn(self) -> None:
        self.checkpoints.turn(lambda: self.ordered.append(self.checkpoints.passed_over))

    def versions(self) -> list[int]:
        """Take a turn; returns the checkpoints that anybody sees."""
        self.turn()
        return sorted(int(path.name[1:]) for path in self.store.root.glob("v*"))

    def await_versions(self, *versions: int) -> None:
        await_true(lambda: self.versions() == list(versions), f"checkpoints {versions}", 60)

    def failures(self) -> list[str]:
        self.turn()
        return [each.reason for each in self.told if isinstance(each, CheckpointFailed)]

    def stop(self) -> None:
        self.arrivals.stop()
        self.server.stop()


def request() -> SimpleNamespace:
    checkpoint = SimpleNamespace(every_s=300.0, keep=2)
    spec = SimpleNamespace(
        train=SimpleNamespace(checkpoint=checkpoint), seed=0, kpool=SimpleNamespace(mode="local", n=N)
    )
    spec.topology = SimpleNamespace(replicas=2, here=0)
    return SimpleNamespace(spec=spec, resumed=None, fingerprint="f" * 64)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    (tmp_path / "home").mkdir()
    made = Home(tmp_path / "home")
    yield made
    made.stop()


def written(root: Path, version: int, replica: int = 0, final: bool = False) -> Path:
    """What a replica's worker has written of a checkpoint, in several parts."""
    folder = root / f".{scratch_name(version, final)}.tmp"
    folder.mkdir(parents=True)
    draw = np.random.default_rng()
    save_file({"anchor": draw.normal(size=(N, 5 * PART_BYTES // 16 + 1)).astype(np.float32)}, folder / ANCHORS)
    save_file({"own.0.exp_avg": draw.normal(size=PART_BYTES // 2).astype(np.float32)}, folder / part_name(replica))
    return folder


def placed(home: Home, ticket: str) -> Observer:
    """A connection that has a place: the first one that asks has that of replica 0."""
    made = Observer(home.keys)
    made.ask(SlotRequest(ticket), Slot, 60.0)
    return made


@contextmanager
def gives(observer: Observer, ticket: str, replica: int, root: Path) -> Iterator[None]:
    """A launcher whose replica trains on, and that gives what is asked for."""
    giving, ended, clock = Giving(observer, ticket, replica, root), threading.Event(), iter(range(1, 10**9))

    def go() -> None:
        while not ended.is_set():
            giving.turn(float(next(clock)))
            if (message := observer.receive(0.02)) is not None:
                giving.hear(message)

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(60)


def test_what_the_first_member_has_written_becomes_a_checkpoint_and_the_newest_are_kept(home, tmp_path) -> None:
    there = tmp_path / "there"
    with placed(home, "a") as observer, gives(observer, "a", 0, there):
        for version in (1, 2, 3):
            folder = written(there, version)
            before = {path.name: path.read_bytes() for path in folder.iterdir()}
            home.order(version, folder)
            home.await_versions(*range(max(1, version - 1), version + 1))
            await_true(lambda folder=folder: not folder.exists(), "nothing is left there", 60)
    newest = home.store.newest()
    assert newest.newest is not None
    assert (newest.newest.manifest.version, newest.newest.manifest.parts, newest.skipped) == (3, [0], ())
    assert {name: (newest.newest.path / name).read_bytes() for name in before} == before
    assert [path.name for path in home.store.root.glob(".*")] == []


def test_who_dies_in_the_middle_leaves_nothing_and_the_next_one_is_made(home, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(arrivals_module, "PATIENCE_S", 0.5)
    first, second = written(tmp_path / "a", 1), written(tmp_path / "b", 2, replica=1)
    with placed(home, "a") as dying, placed(home, "b") as observer:
        home.order(1, first)
        home.versions()
        dying.send(CheckpointOffer("a", "at1"))
        asked = awaited(dying, DataRequest)
        dying.send(DataPart(asked.file, 0, (first / ANCHORS).read_bytes()[:PART_BYTES]))
        await_true(lambda: home.failures() == ["replica 0: it has not come in time"], "the reason", 60)
        assert home.versions() == []
        assert list(home.store.root.glob(".*")) == []
        monkeypatch.setattr(arrivals_module, "PATIENCE_S", 60.0)
        home.order(2, second, members=(1,))
        with gives(observer, "b", 1, tmp_path / "b"):
            home.await_versions(2)


def test_nothing_is_taken_from_another_member_from_a_stranger_or_of_another_content(home, tmp_path) -> None:
    folder, other = written(tmp_path / "a", 1), written(tmp_path / "b", 1)
    with placed(home, "a") as liar, placed(home, "b") as second, Observer(home.keys) as stranger:
        home.order(1, folder)
        home.versions()
        for each, ticket in ((second, "b"), (stranger, "nobody's")):
            each.send(CheckpointOffer(ticket, "at1"))
            each.send(DataPart(f"at1/{ANCHORS}", 0, b"x" * PART_BYTES))
        await_true(lambda: home.server.status().refused.get("identity", 0) == 2, "the stranger's refusals", 60)
        with gives(liar, "a", 0, tmp_path / "b"):
            await_true(home.failures, "the reason", 60)
        assert second.receive(0.0) is None
        assert other.parent.exists()
    assert home.failures() == [f"replica 0: {ANCHORS} of the checkpoint is not what was offered"]
    assert home.versions() == []
    assert list(home.store.root.glob(".*")) == []


def test_a_newer_one_takes_the_place_of_one_that_is_on_its_way(home, tmp_path) -> None:
    first, last = written(tmp_path / "a", 1), written(tmp_path / "late", 2, final=True)
    with placed(home, "a") as observer:
        home.order(1, first)
        home.versions()
        observer.send(CheckpointOffer("a", "at1"))
        awaited(observer, DataRequest)
        home.order(2, last, final=True)
        await_true(lambda: home.versions() == [] and home.arrivals._wanted.name == "final", "the newer one", 60)
        observer.send(CheckpointOffer("a", "at1"))
        assert awaited(observer, CheckpointSettled).name == "at1"
        with gives(observer, "a", 0, tmp_path / "late"):
            home.await_versions(2)
    assert home.failures() == []


def test_a_disk_that_has_no_room_is_named(home, tmp_path, monkeypatch) -> None:
    usage = incoming_module.shutil.disk_usage
    monkeypatch.setattr(incoming_module.shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))
    with placed(home, "a") as observer, gives(observer, "a", 0, tmp_path / "a"):
        home.order(1, written(tmp_path / "a", 1))
        await_true(home.failures, "the reason", 60)
    assert "and 1000 are free" in home.failures()[0]


def awaited(observer: Observer, kind: type) -> object:
    found: list = []

    def comes() -> bool:
        found.append(observer.receive(0.1))
        return isinstance(found[-1], kind)

    await_true(comes, kind.__name__, 60)
    return found[-1]


def test_the_last_one_is_given_after_the_replica_has_ended_and_nothing_stays(home, tmp_path) -> None:
    written(tmp_path / "a", 3)
    home.order(4, written(tmp_path / "a", 4, final=True), final=True)
    turned, done = threading.Event(), threading.Event()

    def turn() -> None:
        while not done.is_set():
            home.checkpoints.turn(lambda: None)
            turned.wait(0.02)

    thread = threading.Thread(target=turn)
    with placed(home, "a") as observer:
        thread.start()
        try:
            Giving(observer, "a", 0, tmp_path / "a").finish(lambda: False)
        finally:
            done.set()
            thread.join(60)
    home.await_versions(4)
    assert list((tmp_path / "a").iterdir()) == []


def test_what_is_not_whole_is_not_offered_and_no_other_file_is_given(tmp_path) -> None:
    hub, root = Mock(), tmp_path / "run" / "checkpoints"
    (tmp_path / "run" / "keys.json").parent.mkdir()
    (tmp_path / "run" / "keys.json").write_text("secret")
    written(root, 1)
    half = root / ".at12.tmp"
    half.mkdir()
    (half / ANCHORS).write_bytes(b"half")
    giving = Giving(hub, "a", 0, root)
    giving.turn(1.0)
    assert said(hub) == [CheckpointOffer("a", "at1")]
    for file in ("keys.json", "../keys.json", "at1/../../keys.json", "at1/replica1.safetensors", f"at12/{ANCHORS}"):
        giving.hear(DataRequest("a", file, 0))
    giving.hear(DataRequest("another's", f"at1/{ANCHORS}", 0))
    giving.hear(DataRequest("a", f"at1/{ANCHORS}", 2**60))
    assert all(not each.data for each in said(hub)[1:])
    giving.hear(CheckpointSettled("a", "at12"))
    assert (root / ".at1.tmp").exists()
    (half / part_name(0)).write_bytes(b"")
    giving.turn(9.0)
    assert said(hub)[-1] == CheckpointOffer("a", "at12")
    assert not (root / ".at1.tmp").exists()


def said(hub: Mock) -> list:
    return [call.args[0] for call in hub.send.call_args_list]


@pytest.mark.parametrize(
    ("size", "within_s", "expected"),
    [(1 << 40, 75.0, ASKS_PER_S), (1000, 75.0, LEAST_ASKS_PER_S), (1000, 0.0, ASKS_PER_S)],
)
def test_it_is_asked_for_no_faster_than_it_must(size: int, within_s: float, expected: float) -> None:
    assert Wanted("at1", 0, {ANCHORS: FileFacts(size, "")}, within_s).asks_per_s == expected


def test_a_middling_one_takes_its_share_of_the_time() -> None:
    wanted = Wanted("at1", 0, {ANCHORS: FileFacts(1500 * PART_BYTES, "")}, 75.0)
    assert wanted.asks_per_s == pytest.approx(20.0)


def test_a_spoilt_one_with_a_right_hash_is_named_the_old_one_stays_and_another_member_gives_the_next(
    home, tmp_path
) -> None:
    first = written(tmp_path / "a", 1)
    with placed(home, "a") as liar, gives(liar, "a", 0, tmp_path / "a"):
        home.order(1, first)
        home.await_versions(1)
        spoilt = written(tmp_path / "a", 2)
        save_file({"anchor": np.full((N, 9), np.nan, np.float32)}, spoilt / ANCHORS)
        home.order(2, spoilt)
        await_true(home.failures, "the reason", 60)
        await_true(lambda: not spoilt.exists(), "it is told that nothing of it is wanted any more", 60)
    assert len(home.failures()) == 1
    assert "replica 0: anchors.safetensors has anchors [4, 9] of F32, this run's are [4, " in home.failures()[0]
    assert home.versions() == [1]
    assert home.ordered == [frozenset({0})], "at once, from somebody else"
    with placed(home, "b") as honest, gives(honest, "b", 1, tmp_path / "b"):
        home.order(3, written(tmp_path / "b", 3, replica=1), members=(1,))
        home.await_versions(1, 3)


def test_anchors_that_the_fleet_has_not_agreed_on_are_a_lie_and_those_that_it_has_are_taken(home, tmp_path) -> None:
    folder, other = written(tmp_path / "a", 1), written(tmp_path / "c", 1)

    def agreed(path: Path) -> tuple:
        with safe_open(path / ANCHORS, framework="numpy") as file:
            rows = file.get_tensor("anchor")
        return (((0, 1), hashlib.sha256(rows[:2].tobytes()).hexdigest()),)

    with placed(home, "a") as member, gives(member, "a", 0, tmp_path / "a"):
        home.order(1, folder, digests=agreed(other))
        await_true(home.failures, "the reason", 60)
        said = f"replica 0: {ANCHORS} has other anchors of adapters 0, 1 than the fleet has agreed on"
        assert home.failures() == [said]
        folder = written(tmp_path / "a", 2)
        home.order(2, folder, digests=agreed(folder))
        home.await_versions(2)


def test_when_nobody_else_is_left_who_was_passed_over_may_again(home, tmp_path) -> None:
    folder = written(tmp_path / "a", 1)
    (folder / part_name(0)).write_bytes(b"rubbish")
    with placed(home, "a") as alone, gives(alone, "a", 0, tmp_path / "a"):
        home.order(1, folder, members=(0,))
        await_true(home.failures, "the reason", 60)
    assert home.checkpoints.passed_over == frozenset()


def test_scratch_names_are_ordered_by_version_with_the_last_one_last() -> None:
    assert sorted_names(["final", "at12", "at9", "v000001", "at", "at-1", "atx"]) == ["at9", "at12", "final"]
