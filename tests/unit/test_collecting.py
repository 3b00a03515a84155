"""The hub's machine has the adapter at the end: a replica of another machine gives it, over the hub's connection."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support import await_true, hub_plan, keeps_events
from tests.unit.test_slot_requests import hello as hello_of
from tsugi_cli.launch import collecting as collecting_module
from tsugi_cli.launch import incoming as incoming_module
from tsugi_cli.launch import pace
from tsugi_cli.launch.bringing import brought
from tsugi_cli.launch.collecting import Collecting
from tsugi_cli.launch.incoming import Incoming
from tsugi_cli.launch.offering import WEIGHTS, listing_of, offer, read_listing
from tsugi_cli.launch.pace import Verdict
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.effects import FleetStage
from tsugi_kpool.core.hub.members import Member
from tsugi_kpool.core.hub.slot_requests import wants_adapter
from tsugi_kpool.core.messages import (
    AdapterOffer,
    AdapterSettled,
    DataPart,
    DataRequest,
    FleetStatus,
    Slot,
    SlotRequest,
    StatusRequest,
)
from tsugi_kpool.core.parcels import PART_BYTES
from tsugi_kpool.errors import LaunchError
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.observer import Observer

pytestmark = pytest.mark.timeout(200)


class Home:
    """A hub whose machine trains no replica, and what brings the adapter there."""

    def __init__(self, root: Path) -> None:
        plan = hub_plan(replicas=2, joinable=2, config="seed: 0", supervised=False)
        self.server = HubServer(plan, RunKeys.generate(), keeps_events([]))
        self.adapter = root / "adapter"
        self.collecting = Collecting(self.adapter, lambda: self.server.ask(wants_adapter), self.server.deliver)
        self.server.take = self.collecting.take
        self.keys = self.server.start("127.0.0.1", 0)
        self.collecting.start()

    def finish(self) -> None:
        """The run comes to its end."""
        self.server.ask(lambda hub: setattr(hub, "stage", FleetStage.FINISHED))

    def stop(self) -> None:
        self.collecting.stop()
        self.server.stop()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    (tmp_path / "home").mkdir()
    made = Home(tmp_path / "home")
    yield made
    made.stop()


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """An adapter of another machine, of several parts."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    save_file({"lora": np.random.default_rng(0).normal(size=5 * PART_BYTES + 7).astype(np.float32)}, folder / WEIGHTS)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    (folder / "README.md").write_bytes(b"")
    (folder / "left.bin").write_bytes(b"what nobody asks for")
    return folder


def placed(home: Home, ticket: str) -> Observer:
    """A connection that has a place."""
    made = Observer(home.keys)
    made.ask(SlotRequest(ticket), Slot, 20.0)
    return made


def test_the_adapter_comes_whole_and_nothing_else_with_it(home: Home, theirs: Path) -> None:
    with placed(home, "a") as replica:
        assert replica.ask(StatusRequest(), FleetStatus, 20.0).wants_adapter
        replica.send(AdapterOffer("a", b"{}"))
        assert isinstance(replica.ask(StatusRequest(), FleetStatus, 20.0), FleetStatus)
        assert not home.collecting.problem, "nothing is taken before the end"
        home.finish()
        assert offer(replica, "a", theirs, lambda: False)
    names = {path.name for path in home.adapter.iterdir()}
    assert names == {WEIGHTS, "adapter_config.json", "README.md"}
    assert all((home.adapter / name).read_bytes() == (theirs / name).read_bytes() for name in names)
    assert (home.collecting.given_by, home.collecting.pending({"a"})) == ("a", False)


def test_two_offer_and_one_is_taken(home: Home, theirs: Path) -> None:
    with placed(home, "a") as first, placed(home, "b") as second:
        home.finish()
        given: list[bool] = []
        other = threading.Thread(target=lambda: given.append(offer(second, "b", theirs, lambda: False)))
        other.start()
        given.append(offer(first, "a", theirs, lambda: False))
        other.join(60)
    assert given == [True, True], "who was not asked is told that nothing is wanted any more"
    assert home.collecting.given_by in ("a", "b")


def test_who_dies_in_the_middle_is_followed_by_the_next_one(home: Home, theirs: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        collecting_module, "SILENT_S", 1.0
    )  # who gives what is wanted is quicker, also on a busy machine
    with placed(home, "a") as dying, placed(home, "b") as next_one:
        home.finish()
        dying.send(AdapterOffer("a", listing_of(theirs)))
        asked: list[object] = []
        await_true(lambda: asked.append(dying.receive(0.1)) or isinstance(asked[-1], DataRequest), "a question", 60)
        dying.send(DataPart("README.md", 0, b""))
        assert offer(next_one, "b", theirs, lambda: False)
    assert home.collecting.given_by == "b", home.collecting.problem
    assert (home.adapter / WEIGHTS).read_bytes() == (theirs / WEIGHTS).read_bytes()


def test_a_machine_that_has_one_says_so_at_once(home: Home, theirs: Path) -> None:
    home.adapter.mkdir()
    with placed(home, "a") as replica:
        home.finish()
        assert offer(replica, "a", theirs, lambda: False)
    assert list(home.adapter.iterdir()) == []


def test_who_has_no_place_gives_nothing(home: Home, theirs: Path) -> None:
    with Observer(home.keys) as stranger:
        stranger.send(AdapterOffer("a ticket that nobody was given", listing_of(theirs)))
        stranger.send(DataPart(WEIGHTS, 0, b"x"))
        await_true(lambda: home.server.status().refused.get("identity", 0) == 2, "two refusals", 60)
        assert stranger.receive(0.1) is None
    assert not home.adapter.exists()


def test_what_is_not_what_was_offered_is_deleted_and_said(home: Home, theirs: Path) -> None:
    listing = msgspec.json.decode(listing_of(theirs))
    listing[WEIGHTS]["sha256"] = hashlib.sha256(b"another").hexdigest()
    with placed(home, "a") as liar:
        home.finish()
        liar.send(AdapterOffer("a", msgspec.json.encode(listing)))
        while not isinstance(asked := liar.receive(60.0), AdapterSettled) and not home.collecting.problem:
            if isinstance(asked, DataRequest):
                with (theirs / asked.file).open("rb") as file:
                    file.seek(asked.start)
                    liar.send(DataPart(asked.file, asked.start, file.read(PART_BYTES)))
    await_true(lambda: "is not what was offered" in home.collecting.problem, "the reason", 60)
    assert list(home.adapter.parent.iterdir()) == []


@pytest.mark.parametrize("names", [{}, {"adapter_config.json": 1}, {"../out.json": 1}, {"code.py": 1}, {"a.bin": 1}])
def test_a_listing_that_is_no_adapters_is_refused(names: dict[str, int]) -> None:
    mark = {"size": 1, "sha256": "0" * 64}
    listing = dict.fromkeys(names, mark) | ({} if not names or "adapter_config.json" in names else {WEIGHTS: mark})
    with pytest.raises(LaunchError, match="an adapter was offered"):
        read_listing(msgspec.json.encode(listing))


def test_who_gives_nothing_that_is_wanted_holds_up_neither_the_next_one_nor_the_end(
    home: Home, theirs: Path, monkeypatch
) -> None:
    monkeypatch.setattr(
        collecting_module, "SILENT_S", 1.0
    )  # who gives what is wanted is quicker, also on a busy machine
    done = threading.Event()

    def chatter(liar: Observer) -> None:
        """Parts that nobody has asked for, and the same offer again and again."""
        listing = listing_of(theirs)
        while not done.is_set():
            liar.send(DataPart("README.md", 0, b""))
            liar.send(DataPart(WEIGHTS, 0, b"too short"))
            liar.send(AdapterOffer("a", listing))
            liar.receive(0.02)

    with placed(home, "a") as liar, placed(home, "b") as honest:
        home.finish()
        talking = threading.Thread(target=chatter, args=(liar,))
        talking.start()
        await_true(lambda: home.collecting._incoming is not None, "the liar's", 60)
        try:
            assert offer(honest, "b", theirs, lambda: False)
        finally:
            done.set()
            talking.join(60)
    assert home.collecting.given_by == "b"


def test_whose_adapter_was_never_what_was_offered_is_not_asked_for_ever(home: Home, theirs: Path) -> None:
    listing = msgspec.json.decode(listing_of(theirs))
    listing["README.md"]["sha256"] = hashlib.sha256(b"another").hexdigest()
    listing = {"README.md": listing["README.md"], WEIGHTS: listing[WEIGHTS]}
    with placed(home, "a") as liar:
        home.finish()
        for _ in range(collecting_module.MOST_TRIES + 2):
            liar.ask(AdapterOffer("a", msgspec.json.encode(listing)), AdapterSettled, 60.0)
    assert home.collecting._tries["a"] == collecting_module.MOST_TRIES
    assert list(home.adapter.parent.iterdir()) == [], "nothing of it stays"


def test_what_would_fill_the_disk_or_comes_too_slowly_is_given_up(home: Home, theirs: Path, monkeypatch) -> None:
    usage = incoming_module.shutil.disk_usage
    whole = sum(path.stat().st_size for path in theirs.iterdir())
    with placed(home, "a") as first, placed(home, "b") as second:
        home.finish()
        monkeypatch.setattr(incoming_module.shutil, "disk_usage", lambda path: usage(path)._replace(free=whole))
        first.ask(AdapterOffer("a", listing_of(theirs)), AdapterSettled, 60.0)
        await_true(lambda: f"and {whole} are free" in home.collecting.problem, "the reason", 60)
        monkeypatch.setattr(incoming_module.shutil, "disk_usage", usage)
        monkeypatch.setattr(pace, "MOST_S", -1e9)
        second.send(AdapterOffer("b", listing_of(theirs)))
        await_true(lambda: "too slowly" in home.collecting.problem, "the reason", 60)
    assert not home.adapter.exists()


class Trickle(threading.Thread):
    """A replica that gives all that is asked for but one part, and offers again and again."""

    def __init__(self, observer: Observer, ticket: str, folder: Path) -> None:
        super().__init__()
        self._observer, self._ticket, self._folder = observer, ticket, folder
        self.done, self.settled = threading.Event(), threading.Event()

    def run(self) -> None:
        listing = listing_of(self._folder)
        while not self.done.is_set():
            self._observer.send(AdapterOffer(self._ticket, listing))
            message = self._observer.receive(0.02)
            if isinstance(message, AdapterSettled):
                self.settled.set()
            if isinstance(message, DataRequest) and (message.start or message.file != WEIGHTS):
                with (self._folder / message.file).open("rb") as file:
                    file.seek(message.start)
                    self._observer.send(DataPart(message.file, message.start, file.read(PART_BYTES)))


def test_a_slow_one_is_left_for_another_who_offers_and_two_slow_ones_do_not_change_for_ever(
    home: Home, theirs: Path, monkeypatch
) -> None:
    verdicts: dict[str, Verdict] = {}
    monkeypatch.setattr(
        pace.Pace, "verdict", lambda self, now_s: verdicts.get(home.collecting._incoming.ticket, Verdict.GOES_ON)
    )
    with placed(home, "a") as first, placed(home, "b") as second:
        home.finish()
        slow, other = Trickle(first, "a", theirs), Trickle(second, "b", theirs)
        slow.start()
        await_true(lambda: home.collecting.coming() is not None, "the slow one's", 60)
        try:
            verdicts |= {"a": Verdict.SLOW, "b": Verdict.SLOW}
            other.start()
            await_true(lambda: (home.collecting.coming() or ("",))[0] == "b", "the other one's", 60)
            begun = home.collecting._tries.copy()
            handled = Counter[str]()
            handle = home.collecting._is_replaced

            def counted(incoming: Incoming, ticket: str, now_s: float) -> bool:
                handled[ticket] += 1
                return handle(incoming, ticket, now_s)

            monkeypatch.setattr(home.collecting, "_is_replaced", counted)
            await_true(lambda: handled["a"] > 3, "more offers of the first one", 60)
            assert home.collecting._tries == begun, "nobody begins anew again and again"
        finally:
            slow.done.set()
            other.done.set()
            slow.join(60)
            other.join(60)


def test_one_that_cannot_be_here_in_time_is_told_so_and_named(home: Home, theirs: Path, monkeypatch) -> None:
    with placed(home, "a") as observer:
        home.finish()
        slow = Trickle(observer, "a", theirs)
        slow.start()
        try:
            await_true(lambda: home.collecting.coming() is not None, "the slow one's", 60)
            monkeypatch.setattr(pace.Pace, "verdict", lambda self, now_s: Verdict.TOO_SLOW)
            assert slow.settled.wait(60)
        finally:
            slow.done.set()
            slow.join(60)
    assert list(home.collecting.problems) == [("a", "it came too slowly")]
    assert list(home.adapter.parent.iterdir()) == []


def test_an_adapter_that_nobody_could_load_is_refused_with_its_giver_and_the_next_one_is_taken(
    home: Home, theirs: Path, tmp_path: Path
) -> None:
    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    (spoilt / WEIGHTS).write_bytes(b"rubbish" * PART_BYTES)
    (spoilt / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    with placed(home, "a") as liar, placed(home, "b") as honest:
        home.finish()
        assert offer(liar, "a", spoilt, lambda: False), "it need not wait"
        assert not home.adapter.exists()
        assert offer(liar, "a", spoilt, lambda: False)
        assert home.collecting._tries["a"] == 1, "it is not asked again"
        assert offer(honest, "b", theirs, lambda: False)
    assert home.collecting.given_by == "b"
    ((ticket, why),) = home.collecting.problems
    assert (ticket, why.startswith(f"{WEIGHTS} is no safetensors")) == ("a", True)
    for replica in range(2):
        home.server.ask(lambda hub, it=replica: hub.members.update({it: Member(hello_of(it, "i"), 0.0, 0.0)}))
    words = home.server.ask(lambda hub: brought(hub, home.collecting, RunPaths(home.adapter.parent)))
    assert words[0].startswith(f"the adapter of replica 0 (host) was not taken: {WEIGHTS} is no safetensors")
    assert words[1:] == ["the adapter has come from replica 1 (host)"]
