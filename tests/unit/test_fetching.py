"""A joiner needs no data file: what its hub has prepared comes over the sideband, whole, and goes on after a cut."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import await_true, hub_plan, keeps_events
from tsugi_cli.data import cache, shipped
from tsugi_cli.data.facts import MANIFEST, Facts
from tsugi_cli.launch import fetching
from tsugi_cli.launch.fetching import Fetch, from_hub
from tsugi_cli.launch.preparing import Onlooker, Stopped
from tsugi_kpool.core import parcels
from tsugi_kpool.core.messages import DataPart, DataRequest, Slot, SlotRequest
from tsugi_kpool.core.parcels import PART_BYTES, Parcel
from tsugi_kpool.errors import LaunchError, MachineError, SidebandError
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.observer import Observer, ask_status

FINGERPRINT = "f" * 64


@given(size=st.integers(0, 6 * PART_BYTES + 5), seed=st.integers(0, 2**32))
def test_a_file_is_whole_however_parts_are_lost_repeated_and_reordered(size, seed):
    chance = random.Random(seed)
    content, out, parcel, now_s, way = bytes(size), bytearray(), Parcel(size), 0.0, []
    for _ in range(10_000):
        if parcel.whole:
            break
        while (start := parcel.due(now_s)) is not None:
            way += [start] * chance.choice([0, 1, 1, 2])
        chance.shuffle(way)
        for start in way:
            out += parcel.take(start, content[start : start + PART_BYTES])
        way, now_s = [], now_s + parcels.AGAIN_S
    assert parcel.whole
    assert (len(out), parcel.written) == (size, size)


def test_parts_that_nobody_asked_for_or_of_another_length_are_dropped():
    parcel = Parcel(3 * PART_BYTES)
    assert parcel.take(0, bytes(PART_BYTES)) == b""
    assert parcel.due(0.0) == 0
    assert parcel.take(0, bytes(5)) == b""
    assert parcel.take(7, bytes(PART_BYTES)) == b""
    assert len(parcel.take(0, bytes(PART_BYTES))) == PART_BYTES


@pytest.fixture
def entry(tmp_path, monkeypatch):
    """Prepared data of a hub's machine, in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "hubs"))
    with cache.making("k" * 40) as scratch:
        made = scratch / "entry"
        made.mkdir()
        (made / "train.arrow").write_bytes(os.urandom(7 * PART_BYTES + 100))
        (made / "eval.arrow").write_bytes(b"")
        (made / "test.arrow").write_bytes(b"x" * PART_BYTES)
        cache.publish("k" * 40, scratch, Facts("", FINGERPRINT, 3, 1, 1, 9, {"layout": {}}))
    found = cache.folder() / ("k" * 40)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "joiners"))
    return found


@pytest.fixture
def hub(entry):
    listing = shipped.listing_of(entry)
    files = {name: entry / name for name in shipped.read_listing(listing)}
    plan = hub_plan(replicas=2, joinable=1, config="seed: 0", supervised=False, data=FINGERPRINT)
    server = HubServer(plan, RunKeys.generate(), keeps_events([]), data=(listing, files))
    server.keys = server.start("127.0.0.1", 0)
    yield server
    server.stop()


class Counted(Observer):
    """Counts what is asked for."""

    def __init__(self, keys: RunKeys) -> None:
        super().__init__(keys)
        self.asked: Counter[str] = Counter()

    def send(self, message) -> None:
        if isinstance(message, DataRequest):
            self.asked[message.file] += 1
        super().send(message)


class Impatient(Onlooker):
    """Wants to stop when so much has come."""

    def __init__(self, texts: int) -> None:
        super().__init__()
        self._left, self.texts = texts, 0

    def progress(self, text: str) -> None:
        self._left -= 1
        self.texts += 1

    @property
    def stopped(self) -> bool:
        return self._left <= 0


def fetch(keys: RunKeys, onlooker: Onlooker, patience_s: float = 20.0) -> tuple[Facts, Counter[str]]:
    with Counted(keys) as observer:
        slot = observer.ask(SlotRequest("ticket"), Slot, 60.0)
        return Fetch(observer, slot, onlooker, patience_s).run(), observer.asked


def same(entry, facts: Facts) -> bool:
    there = shipped.known(FINGERPRINT)
    names = [path.name for path in entry.iterdir() if path.name not in (MANIFEST, cache.SEAL)]
    return there == facts and all(
        (entry / name).read_bytes() == (cache.folder() / facts.entry / name).read_bytes() for name in names
    )


def test_a_joiner_has_the_hubs_data_and_fetches_them_once(entry, hub):
    assert shipped.known(FINGERPRINT) is None
    facts, asked = fetch(hub.keys, Onlooker())
    assert same(entry, facts)
    assert (facts.n_train, facts.fingerprint) == (3, FINGERPRINT)
    assert asked["train.arrow"] >= 8
    again, asked = fetch(hub.keys, Onlooker())
    assert (again, sum(asked.values())) == (facts, 0)


def test_who_was_stopped_in_the_middle_goes_on_from_there(entry, hub, monkeypatch):
    """The rest on disk is all that a killed process leaves."""
    monkeypatch.setattr(parcels, "WINDOW", 1)
    with pytest.raises(Stopped):
        fetch(hub.keys, Impatient(8))
    scratch = next(cache.folder().glob(".fetching-*"))
    came = sum(path.stat().st_size for path in (scratch / "entry").iterdir() if path.name == "train.arrow")
    assert 0 < came < 7 * PART_BYTES
    facts, asked = fetch(hub.keys, Onlooker())
    assert same(entry, facts)
    assert asked["train.arrow"] <= 8 - came // PART_BYTES
    assert not list(cache.folder().glob(".fetching-*"))


def test_a_rest_that_is_not_the_hubs_is_found_and_fetched_anew(entry, hub):
    with pytest.raises(Stopped):
        fetch(hub.keys, Impatient(1))
    scratch = next(cache.folder().glob(".fetching-*"))
    (scratch / "entry" / "train.arrow").write_bytes(b"something else")
    with pytest.raises(LaunchError, match=r"train\.arrow of the hub's data is not what"):
        fetch(hub.keys, Onlooker())
    assert same(entry, fetch(hub.keys, Onlooker())[0])


def test_a_hub_that_comes_again_is_asked_again(entry, hub, monkeypatch):
    """The connection was cut and its place forgotten: it is asked for again, and the parts are."""
    monkeypatch.setattr(fetching, "HOLD_S", 0.2)
    monkeypatch.setattr(parcels, "AGAIN_S", 0.3)
    hub._dispatcher._tickets = Forgetful()
    assert same(entry, fetch(hub.keys, Onlooker())[0])


class Forgetful(dict):
    """Forgets, the first time, who has a place."""

    lost = False

    def get(self, route, default=None):
        found = super().get(route, default)
        if found is not None and default is None and not self.lost:
            self.lost = True
            self.pop(route)
            return None
        return found


def test_who_has_no_place_gets_nothing_and_the_hub_answers_others(entry, hub):
    with Observer(hub.keys) as observer:
        for file in ("", "train.arrow", "../../etc/passwd"):
            observer.send(DataRequest("ticket", file, 0))
        assert ask_status(hub.keys, 10.0).stage == "gathering"
        assert not isinstance(observer.receive(0.3), DataPart)


def test_of_several_connections_with_one_ticket_the_newest_gets_data(entry, hub):
    """Each that does not read holds data in the hub's memory, and everybody with a token can open any number."""
    with Observer(hub.keys) as first, Observer(hub.keys) as second:
        for observer in (first, second):
            observer.ask(SlotRequest("ticket"), Slot, 60.0)
        for observer in (first, second):
            observer.send(DataRequest("ticket", "", 0))
        assert isinstance(second.receive(60.0), DataPart)
        assert not isinstance(first.receive(0.1), DataPart)
        assert list(hub._dispatcher._tickets.values()) == ["ticket"]


def test_nothing_but_listed_files_is_given(entry, hub):
    with Observer(hub.keys) as observer:
        observer.ask(SlotRequest("ticket"), Slot, 60.0)
        for file in ("../seal.json", "/etc/passwd", "seal.json", "nothing"):
            observer.send(DataRequest("ticket", file, 0))
        observer.send(DataRequest("ticket", "train.arrow", 2**40))
        found = []
        await_true(lambda: found.append(observer.receive(0.1)) or isinstance(found[-1], DataPart), "an answer")
        assert (found[-1].file, found[-1].data) == ("train.arrow", b"")


def test_a_hub_that_goes_silent_is_given_up(entry, hub, monkeypatch):
    monkeypatch.setattr(hub._data, "_part", lambda question: None)
    with pytest.raises(SidebandError, match=r"sent no data for 0\.5 s"):
        fetch(hub.keys, Onlooker(), patience_s=0.5)


@pytest.mark.parametrize(
    "listing",
    [
        b"", b"[]", b"{}", b'{"train.arrow": {"size": 1, "sha256": "%s"}}' % (b"a" * 64),
        b'{"manifest.json": {"size": -1, "sha256": "%s"}}' % (b"a" * 64),
        b'{"manifest.json": {"size": 1, "sha256": "x"}}',
        b'{"manifest.json": {"size": 1, "sha256": "%s"}, "../x": {"size": 1, "sha256": "%s"}}'
        % (b"a" * 64, b"a" * 64),
        b'{"manifest.json": {"size": 1, "sha256": "%s"}, "seal.json": {"size": 1, "sha256": "%s"}}'
        % (b"a" * 64, b"a" * 64),
    ],
)  # fmt: skip
def test_a_listing_that_cannot_be_is_refused(listing):
    with pytest.raises(LaunchError, match="cannot be"):
        shipped.read_listing(listing)


def test_another_listing_than_the_promised_one_is_refused(entry, hub, monkeypatch):
    monkeypatch.setattr(hub._data, "_listing", b"{}")
    with pytest.raises(LaunchError, match="not the one that was promised"):
        fetch(hub.keys, Onlooker())


def test_a_listing_without_an_end_is_refused(entry, hub, monkeypatch):
    """A part that is as long as asked for comes for ever: memory stays bounded."""
    monkeypatch.setattr(hub._data, "_part", lambda question: b"x" * PART_BYTES)
    with pytest.raises(LaunchError, match="not the one that was promised"):
        fetch(hub.keys, Onlooker())


@pytest.mark.parametrize("address", ["./../../poetry", "../" * 13 + "x", "A" * 64, "a" * 63])
def test_an_address_that_is_no_hash_names_no_folder(address, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "joiners"))
    with pytest.raises(LaunchError, match="their address is"):
        Fetch(None, Slot("t", 1, "run", "", "", listing=address), Onlooker(), 1.0).run()
    assert not list(tmp_path.iterdir())


def test_data_for_which_there_is_no_room_are_not_begun(entry, hub, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Mock(free=9))
    with pytest.raises(MachineError, match=r"need .* are free; XDG_CACHE_HOME"):
        fetch(hub.keys, Onlooker())
    assert not list(cache.folder().glob(".fetching-*/entry/*"))


def test_two_replicas_of_a_machine_fetch_once_and_the_waiting_one_can_be_stopped(entry, hub):
    """While another process of this machine fetches, the place is held; after it nothing is fetched again."""
    address = hub._data.address
    with ThreadPoolExecutor(1) as pool:
        with shipped.receiving(address, lambda: None) as scratch:
            with pytest.raises(Stopped):
                fetch(hub.keys, Impatient(2))
            seen = Impatient(10**6)
            second = pool.submit(fetch, hub.keys, seen)
            await_true(lambda: seen.texts, "a process that waits")
            shutil.copytree(entry, scratch / "entry", dirs_exist_ok=True)
            (scratch / "entry" / cache.SEAL).unlink()
            shipped.publish(address, scratch)
        facts, asked = second.result(60.0)
    assert same(entry, facts)
    assert asked == Counter()


def test_who_names_a_file_of_his_own_fetches_nothing():
    slot = Slot("t", 1, "run", "", "", listing=hashlib.sha256(b"").hexdigest())
    assert from_hub(slot, ["topology.device=cpu"])
    assert not from_hub(slot, ["data.path=mine.jsonl"])
    assert not from_hub(Slot("t", 1, "run", "", ""), [])
