"""Machines that give a checkpoint or an adapter, and do what nobody would: what they cost is their own alone."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save

from tests.support import await_true
from tests.unit.test_ahead import Table
from tests.unit.test_between_rounds import tick
from tsugi_cli.data.shipped import File
from tsugi_cli.launch import arrivals, incoming
from tsugi_cli.launch.arrivals import Arrivals, Wanted
from tsugi_cli.launch.collecting import Collecting
from tsugi_cli.launch.looking import Expected
from tsugi_cli.launch.pace import MOST_TOTAL_S, Pace, Verdict, latest_s
from tsugi_kpool.checkpoints import Store
from tsugi_kpool.core.checkpoint import ANCHORS, FileFacts, part_name
from tsugi_kpool.core.effects import CheckpointOrdered
from tsugi_kpool.core.messages import AdapterOffer, CheckpointOffer, Commit, DataPart, DataRequest
from tsugi_kpool.core.parcels import PART_BYTES

pytestmark = pytest.mark.timeout(120)


def with_shape(shape: list[int]) -> bytes:
    """A safetensors file of four bytes of values, whose header is right by its own rules."""
    size = 0 if 0 in shape else 4
    header = json.dumps({"own.x": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * size


SPOILT = {"more dimensions than numpy has": with_shape([1] * 70), "more than there can be": with_shape([0, 2**63])}
ANCHORS_FILE = save({"anchor": np.zeros((4, 8), np.float32)})


@pytest.fixture(params=list(SPOILT))
def spoilt(request: pytest.FixtureRequest) -> bytes:
    return SPOILT[request.param]


def facts(files: dict[str, bytes]) -> dict[str, FileFacts]:
    return {name: FileFacts(len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}


def test_a_spoilt_checkpoint_is_refused_and_the_next_one_of_another_member_comes(tmp_path: Path, spoilt: bytes):
    given: dict[str, bytes] = {}

    def deliver(route: bytes, message: object) -> None:
        if isinstance(message, DataRequest):
            name = message.file.split("/")[-1]
            taking.take(route, DataPart(message.file, message.start, given[name]))

    taking = Arrivals(Store(tmp_path), lambda ticket: int(ticket), deliver)
    taking.start()

    def comes(name: str, seat: int, part: bytes) -> tuple[bool, str]:
        given.clear()
        given.update({ANCHORS: ANCHORS_FILE, part_name(seat): part})
        taking.want(Wanted(name, seat, facts(given), 0.0, Expected(4)))

        def settled() -> bool:
            taking.take(b"route %d" % seat, CheckpointOffer(str(seat), name))
            return any(taking.verdict(name))

        await_true(settled, "it is here, or refused", 60.0)
        return taking.verdict(name)

    try:
        here, reason = comes("v1", 0, spoilt)
        assert not here
        assert "is no safetensors" in reason
        assert taking.blames("v1")
        assert comes("v2", 1, save({"own.x": np.zeros(4, np.float32)})) == (True, "")
    finally:
        taking.stop()


def test_nobody_waits_while_a_file_is_hashed_and_another_checkpoint_may_be_wanted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given = {ANCHORS: ANCHORS_FILE, part_name(0): save({"own.x": np.zeros(4, np.float32)})}
    hashing, go_on, digest = threading.Event(), threading.Event(), incoming.cache.file_digest

    def slow(path: Path) -> str:
        hashing.set()
        assert go_on.wait(60.0)
        return digest(path)

    monkeypatch.setattr(incoming.cache, "file_digest", slow)

    def deliver(route: bytes, message: object) -> None:
        if isinstance(message, DataRequest):
            name = message.file.split("/")[-1]
            taking.take(route, DataPart(message.file, message.start, given[name]))

    taking = Arrivals(Store(tmp_path), lambda ticket: 0, deliver)
    taking.start()
    told: list[object] = []

    def asks() -> None:
        told.extend([taking.verdict("v1"), taking.pending, taking.coming()])
        taking.want(Wanted("v2", 0, facts(given), 0.0, Expected(4)))
        told.append(taking.pending)

    try:
        taking.want(Wanted("v1", 0, facts(given), 0.0, Expected(4)))
        taking.take(b"route", CheckpointOffer("ticket", "v1"))
        assert hashing.wait(60.0)
        launcher = threading.Thread(target=asks, daemon=True)
        launcher.start()
        launcher.join(10.0)
        assert len(told) == 4, "the launcher waits for a hash"
        assert told[:2] == [(False, ""), True]
        go_on.set()

        def here() -> bool:
            taking.take(b"route", CheckpointOffer("ticket", "v2"))
            return taking.verdict("v2")[0]

        await_true(here, "the one that is wanted now", 60.0)
        assert sorted(path.name for path in taking._store.root.iterdir()) == [taking._store.scratch("v2").name]
    finally:
        go_on.set()
        taking.stop()


def test_a_spoilt_adapter_is_refused_and_an_honest_one_of_another_replica_comes(tmp_path: Path, spoilt: bytes):
    config = b'{"peft_type":"LORA","r":8}'
    good = save({"base_model.model.q.lora_A.weight": np.zeros((8, 4), np.float32)})
    given = {b"r0": {"adapter_model.safetensors": spoilt, "adapter_config.json": config}}
    given[b"r1"] = given[b"r0"] | {"adapter_model.safetensors": good}

    def deliver(route: bytes, message: object) -> None:
        if isinstance(message, DataRequest):
            taking.take(route, DataPart(message.file, message.start, given[route][message.file]))

    taking = Collecting(tmp_path / "adapter", lambda: True, deliver)
    taking.start()

    def offered(route: bytes, until: Callable[[], bool]) -> bool:
        listing = {name: File(each.bytes, each.sha256) for name, each in facts(given[route]).items()}
        taking.take(route, AdapterOffer(route.decode(), msgspec.json.encode(listing)))
        return until()

    try:
        await_true(lambda: offered(b"r0", lambda: bool(taking.problems)), "it is refused", 60.0)
        await_true(lambda: offered(b"r1", (tmp_path / "adapter").exists), "the other one is here", 60.0)
    finally:
        taking.stop()


def test_a_giver_that_begins_again_and_again_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It has a new connection just before its time is over, each time, and gives nothing."""
    now = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(arrivals, "time", clock)
    monkeypatch.setattr(incoming, "time", clock)
    taking = Arrivals(Store(tmp_path), lambda ticket: 0, lambda route, message: None)
    taking.want(Wanted("v1", 0, {ANCHORS: FileFacts(10_000, "0" * 64)}, 0.0))
    number, begun_s = 0, now[0]
    while now[0] < begun_s + MOST_TOTAL_S and taking.pending:
        number += 1
        taking.handle(b"route %d" % number, CheckpointOffer("ticket", "v1"))
        for _ in range(21):
            now[0] += 0.5
            taking.turn()
    assert now[0] < begun_s + 120
    assert taking.blames("v1")


def test_who_gives_all_that_it_is_asked_for_is_not_too_slow():
    """Large checkpoints that are seldom made are asked for slowly."""
    total = 2 << 30
    wanted = Wanted("v1", 0, {ANCHORS: FileFacts(total, "0" * 64)}, 6 * 3600.0 / 4)
    pace, now_s = Pace(total, 0.0, latest_s(total, 0.0, 0.0)), 0.0
    while pace.come < total and pace.verdict(now_s) is not Verdict.TOO_SLOW:
        now_s += 1.0
        pace.came(int(wanted.asks_per_s * PART_BYTES), now_s)
    assert pace.come >= total


def test_the_first_word_on_a_round_is_no_measure_for_checkpoints_when_others_say_otherwise():
    """A receipt does not cover the digest. What one member says is not what all have agreed on."""
    table = Table()
    table.vote(0, 1, digest="ba" * 32)
    assert table.hub.rounds.version == 1
    assert table.hub.rounds.votes.agreed_on == {}
    for each in (1, 2, 3):
        table.vote(each, 1, digest="ab" * 32)
    tick(table)
    assert set(table.left()) == {0}
    assert set(table.hub.rounds.votes.agreed_on.values()) == {"ab" * 32}


def test_who_writes_a_checkpoint_is_named_when_the_generations_first_member_has_left():
    table = Table()
    table.hub.save()
    for each in (1, 2, 3):
        table.vote(each, 1)
    table.effects += table.hub.leave({0: "killed"}, table.now_s)
    tick(table)
    ordered = [each for each in table.effects if isinstance(each, CheckpointOrdered)]
    assert ordered[-1].writer == table.orders(Commit)[-1].writer == 1
