"""Rounds over a real exchange: the mean, what coding it has lost, and an exchange that is killed at every moment."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.exchange.support import (
    ADAPTERS,
    HUB,
    MEMBERS,
    SIZE,
    TICKETS,
    Running,
    body,
    delta,
    donate,
    mean_of,
    member,
    part,
    round_of,
    running,
    together,
)
from tests.support import await_true
from tsugi_kpool.codec.coding import coded_bytes, decode, encode
from tsugi_kpool.core.settings import Payload
from tsugi_kpool.errors import MachineError
from tsugi_kpool.exchange import states
from tsugi_kpool.exchange.books import Books
from tsugi_kpool.exchange.certificates import member_credentials, server_context, server_credentials
from tsugi_kpool.exchange.client import ExchangeError
from tsugi_kpool.exchange.frames import CHUNK, BadFrame, Kind, Piece, Result
from tsugi_kpool.exchange.frames import encode as encode_frame
from tsugi_kpool.exchange.process import NOTHING_LEFT, begun
from tsugi_kpool.exchange.reduction import check_result
from tsugi_kpool.exchange.rounds import DISAGREE, NO_ADAPTER, OVERTAKEN
from tsugi_kpool.exchange.server import GONE_ON

pytestmark = pytest.mark.timeout(120)


def coded(values):
    return decode(encode(values, Payload.INT8), values.size, Payload.INT8).reshape(values.shape)


def left(values):
    """What is left over is coded, too: each adapter by itself."""
    return np.stack([coded(row) for row in values])


def expected(number: int, members: int, rest):
    """What the rule says of a round: u, and what it leaves."""
    share = np.float32(1.0 / members)
    want = coded(delta(0, number)) * share
    for replica in range(1, members):
        want += coded(delta(replica, number)) * share
    want += rest
    u = coded(want)
    return u, left(want - u)


def test_a_round_is_the_mean_and_what_coding_loses_of_it_comes_with_the_next(tmp_path: Path) -> None:
    rest = np.zeros((2, SIZE), np.float32)
    with running(tmp_path) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        for number in (1, 2, 3):
            results = round_of(clients, number)
            u, rest = expected(number, 3, rest)
            assert len({bytes(raw) for _, raw in results}) == 1, "the same bytes for all"
            np.testing.assert_array_equal(mean_of(part(number), results[0]), u)
        per_round = len(body(delta(0))) + 400
        assert all(client.received < 3 * per_round + 1000 for client in clients), "one payload down for each round"


def test_a_round_that_was_not_committed_leaves_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        round_of(clients, 1)
        u2, _ = expected(2, 3, expected(1, 3, 0)[1])
        round_of(clients, 2, settled=1)
        again = round_of(clients, 3, settled=1, version=1)  # round 2 was aborted
        np.testing.assert_array_equal(mean_of(part(3), again[0]), expected(3, 3, expected(1, 3, 0)[1])[0])
        after = round_of(clients, 4, settled=3, version=2)
        kept = expected(3, 3, expected(1, 3, 0)[1])[1]
        np.testing.assert_array_equal(mean_of(part(4), after[0]), expected(4, 3, kept)[0])
        assert u2.any()


def test_newcomers_alone_tell_by_the_version_whether_the_last_round_counts(tmp_path: Path) -> None:
    for version, rest in ((1, expected(1, 3, 0)[1]), (0, np.zeros((2, SIZE), np.float32))):
        folder = tmp_path / str(version)
        with running(folder) as exchange:
            clients = [member(exchange.port, replica) for replica in range(3)]
            round_of(clients, 1)
            found = round_of(clients, 2, settled=None, version=version)
            np.testing.assert_array_equal(mean_of(part(2), found[0]), expected(2, 3, rest)[0])


def test_a_round_that_the_hub_has_aborted_does_not_count_whatever_the_version_is(tmp_path: Path) -> None:
    """It was the first at the exchange; then one member alone has committed rounds, which nobody sums here."""
    with running(tmp_path) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        round_of(clients, 1)
        found = together(
            lambda: clients[0].reduce(part(9, settled=0, version=7), body(delta(0, 9))),
            lambda: clients[1].reduce(part(9, settled=0, version=7), body(delta(1, 9))),
            lambda: clients[2].reduce(part(9, settled=0, version=7), body(delta(2, 9))),
        )
        np.testing.assert_array_equal(mean_of(part(9), found[0]), expected(9, 3, 0)[0])


def test_killed_while_parts_come_in_the_round_goes_on_with_the_next_process(tmp_path: Path) -> None:
    exchange = Running(tmp_path, 3)
    clients = [member(exchange.port, replica) for replica in range(3)]
    said = part(1)
    got: dict[int, tuple[Result, bytes]] = {}

    def ship(replica: int) -> None:
        said_of, raw = clients[replica].reduce(said, body(delta(replica)))
        got[replica] = said_of, bytes(raw)

    waiting = [threading.Thread(target=ship, args=(replica,), daemon=True) for replica in (0, 1)]
    for each in waiting:
        each.start()

    def has_two() -> bool:
        collecting = exchange.exchange._rounds.collecting
        return collecting is not None and len(collecting.parts) == 2

    await_true(has_two, "two parts")
    exchange.kill()
    with running(tmp_path, port=exchange.port):
        ship(2)
        for each in waiting:
            each.join(60)
    assert len(got) == 3
    assert len(set(got.values())) == 1
    np.testing.assert_array_equal(mean_of(said, got[0]), expected(1, 3, 0)[0])


@pytest.mark.parametrize("moment", ["before it is written", "after it is written"])
def test_killed_before_or_after_the_result_is_written_all_get_the_same_bytes(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members may have the result already: whoever asks again must get the same, and nothing counts twice."""
    with running(tmp_path) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        round_of(clients, 1)
    held = threading.Event()
    write = Books.write

    def stuck(self: Books, *words: object) -> None:
        if moment == "after it is written":
            write(self, *words)  # type: ignore[arg-type]
        held.set()
        killed.wait(60)
        raise RuntimeError("killed")

    killed = threading.Event()
    monkeypatch.setattr(Books, "write", stuck)
    first = Running(tmp_path, 3)
    clients = [member(first.port, replica) for replica in range(3)]
    got: dict[int, tuple[Result, bytes]] = {}

    def ship(replica: int) -> None:
        said_of, raw = clients[replica].reduce(part(2), body(delta(replica, 2)))
        got[replica] = said_of, bytes(raw)

    waiting = [threading.Thread(target=ship, args=(replica,), daemon=True) for replica in range(3)]
    for each in waiting:
        each.start()
    assert held.wait(60)
    assert not got, "nobody says reduced before the disk has it"
    first.loop.call_soon_threadsafe(first._ended.set)
    monkeypatch.setattr(Books, "write", write)
    killed.set()
    first._thread.join(60)
    with running(tmp_path, port=first.port):
        for each in waiting:
            each.join(60)
        assert len(got) == 3
        rest = expected(1, 3, 0)[1]
        for raw in got.values():
            np.testing.assert_array_equal(mean_of(part(2), raw), expected(2, 3, rest)[0])
        after = round_of(clients, 3)
        np.testing.assert_array_equal(mean_of(part(3), after[0]), expected(3, 3, expected(2, 3, rest)[1])[0])


def test_killed_after_the_commit_what_is_left_over_is_still_there(tmp_path: Path) -> None:
    with running(tmp_path) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        round_of(clients, 1)
    with running(tmp_path, port=exchange.port):
        found = round_of(clients, 2)
    np.testing.assert_array_equal(mean_of(part(2), found[0]), expected(2, 3, expected(1, 3, 0)[1])[0])


def test_a_round_is_written_over_one_that_holds_nothing_any_more(tmp_path: Path) -> None:
    rests: dict[tuple[int, int], object] = {}
    with running(tmp_path) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        for number in range(1, 9):
            adapters = (0, 1) if number % 2 else (2, 3)
            found = round_of(clients, number, adapters=adapters)
            u, rests[adapters] = expected(number, 3, rests.get(adapters, 0))
            np.testing.assert_array_equal(mean_of(part(number), found[0]), u)
    # The newest round, what each adapter has left, and what those that wrote them were built on.
    assert len(list(tmp_path.glob("slot-*.bin"))) <= 5
    with running(tmp_path, port=exchange.port):
        for number, adapters in ((9, (0, 1)), (10, (2, 3))):
            found = round_of(clients, number, adapters=adapters)
            np.testing.assert_array_equal(mean_of(part(number), found[0]), expected(number, 3, rests[adapters])[0])


def slot_of(folder: Path, number: int) -> Path:
    """The file in which a round lies."""
    return next(path for path in folder.glob("slot-*.bin") if f'"round":{number},'.encode() in path.read_bytes())


def spoil(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_damaged_round_that_later_ones_build_on_is_refused_by_name(tmp_path: Path) -> None:
    with running(tmp_path) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        for number, adapters in ((1, (0, 1)), (2, (2, 3)), (3, (2, 3))):
            round_of(clients, number, adapters=adapters)
    spoil(slot_of(tmp_path, 1), -1)
    with pytest.raises(MachineError, match=r"round 1 is damaged or missing"):
        Running(tmp_path, 3)


@pytest.mark.parametrize("place", [3, 20, 900, -1])
def test_a_round_that_was_half_written_never_stood_and_is_made_again_of_the_same_parts(
    tmp_path: Path, place: int
) -> None:
    with running(tmp_path) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        round_of(clients, 1)
        before = round_of(clients, 2)
    spoil(slot_of(tmp_path, 2), place)
    with running(tmp_path, port=exchange.port):
        assert round_of(clients, 2) == before
        after = round_of(clients, 3)
    rest = expected(2, 3, expected(1, 3, 0)[1])[1]
    np.testing.assert_array_equal(mean_of(part(3), after[0]), expected(3, 3, rest)[0])


def test_a_full_disk_stops_nobody_and_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Books, "write", full)
    with running(tmp_path) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        round_of(clients, 1)
        found = round_of(clients, 2)
        assert exchange.exchange.counts.behind == "No space left on device"
        again = round_of(clients, 3, settled=1, version=1)  # round 2 was aborted, and is not on the disk either
        np.testing.assert_array_equal(mean_of(part(3), again[0]), expected(3, 3, expected(1, 3, 0)[1])[0])
        assert exchange.exchange.answers.failure is None
    np.testing.assert_array_equal(mean_of(part(2), found[0]), expected(2, 3, expected(1, 3, 0)[1])[0])


def test_parts_that_are_no_numbers_are_named_and_nothing_is_summed(tmp_path: Path) -> None:
    with running(tmp_path) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        bad = np.full((2, SIZE), np.nan, np.float32)
        results = together(
            lambda: clients[0].reduce(part(1), body(delta(0))),
            lambda: clients[1].reduce(part(1), body(bad)),
            lambda: clients[2].reduce(part(1), body(delta(2))),
        )
        assert {result.unusable for result, _ in results} == {(1,)}
        after = round_of(clients, 2, settled=0, version=0)
        np.testing.assert_array_equal(mean_of(part(2), after[0]), expected(2, 3, 0)[0])


def test_a_member_of_an_older_round_is_told_so_and_members_must_agree(tmp_path: Path) -> None:
    with running(tmp_path) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        round_of(clients, 2)
        with pytest.raises(ExchangeError, match=OVERTAKEN):
            clients[0].reduce(part(1), body(delta(0)))

        def wait_in_vain() -> None:
            with pytest.raises(ExchangeError, match="not waited for"):
                clients[0].reduce(part(3), body(delta(0)))

        waiting = threading.Thread(target=wait_in_vain, daemon=True)
        waiting.start()
        await_true(lambda: exchange.exchange._rounds.collecting is not None, "a part")
        with pytest.raises(ExchangeError, match=DISAGREE):
            clients[1].reduce(part(3, version=7), body(delta(1)))
        with pytest.raises(ExchangeError, match="no member"):
            clients[2].reduce(part(4, members=(0, 1)), body(delta(2)))
        with pytest.raises(ExchangeError, match=NO_ADAPTER):
            clients[1].reduce(part(3, adapters=(0, 8)), body(delta(1)))
        with pytest.raises(ExchangeError, match="bytes"):
            clients[1].reduce(part(3), body(delta(1)) + b"x")
        clients[1].reduce(part(4, members=(1,)), body(delta(1)))  # the fleet goes on
        clients[0].interrupt()
        waiting.join(60)
        assert not waiting.is_alive()


def test_a_newcomer_gets_the_donors_state_also_when_it_asks_first_or_again(tmp_path: Path) -> None:
    state = np.random.default_rng(0).bytes(3_500_000)
    with running(tmp_path) as exchange:
        donor, newcomer, late = (member(exchange.port, replica) for replica in range(3))
        given = together(lambda: newcomer.want(4), lambda: donate(donor, 4, state))
        assert given[0] == state
        assert late.want(4) == state
        newer = together(lambda: newcomer.want(5), lambda: donate(donor, 5, state[:7]))
        assert newer[0] == state[:7]
    assert not list(tmp_path.glob("state*"))


def test_a_donor_that_gives_its_state_again_leaves_no_newcomer_with_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = np.random.default_rng(0).bytes(24 * CHUNK)  # more than the buffers between the two take
    with running(tmp_path) as exchange:
        donor, newcomer = (member(exchange.port, replica) for replica in range(2))
        gate, receive, got = threading.Event(), newcomer._receive, []

        def held() -> object:
            assert gate.wait(60)
            return receive()

        monkeypatch.setattr(newcomer, "_receive", held)
        donate(donor, 4, state)
        waiting = threading.Thread(target=lambda: got.append(newcomer.want(4)), daemon=True)
        waiting.start()
        placed, given = exchange.exchange._placed, exchange.exchange._states
        await_true(lambda: 1 in placed and placed[1].owed, "a state on its way")
        donor._send(Kind.OFFER, Piece(4, 0, len(state), TICKETS.of_donor(4, 0)), state[:CHUNK])
        await_true(lambda: not given.whole, "a donor that begins again")
        gate.set()
        await_true(lambda: exchange.exchange._wanting, "a newcomer that waits again")
        donate(donor, 4, state)
        waiting.join(60)
    assert [bytes(each) for each in got] == [state]


def test_a_pool_of_another_size_ends_no_exchange(tmp_path: Path) -> None:
    """Also where the round that says so counts only once the next one is complete."""
    with running(tmp_path) as exchange:
        clients = [member(exchange.port, replica) for replica in range(2)]
        round_of(clients, 1)
        values = delta(0)[:, :100]
        said = part(2, (0, 1), size=100)
        found = together(*(lambda each=each: each.reduce(said, body(values)) for each in clients))
        np.testing.assert_array_equal(mean_of(said, found[0]), coded(coded(values)))
        for adapters in ((0, 2), (1, 3)):
            with pytest.raises(ExchangeError, match="another size"):
                clients[0].reduce(part(3, (0, 1), size=100, adapters=adapters), body(values))
        assert exchange.exchange.answers.failure is None


def test_a_resumed_run_goes_on_with_what_was_left_over_bit_for_bit(tmp_path: Path) -> None:
    """Another exchange with other books; killed before an adapter has come again, it still has what is left of it."""
    first, second = (0, 1), (2, 3)
    with running(tmp_path / "before") as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        round_of(clients, 1, adapters=first)
        round_of(clients, 2, adapters=second)
        with pytest.raises(ExchangeError, match=GONE_ON):
            clients[0].left_over(1, SIZE, ADAPTERS)  # it has not heard that a round is committed
        clients[0].settled = 2
        whole = np.frombuffer(clients[0].left_over(1, SIZE, ADAPTERS), np.uint8).reshape(ADAPTERS, -1)
        undisturbed = [round_of(clients, 3, adapters=first), round_of(clients, 4, adapters=second)]
    path = tmp_path / "anchors.safetensors"
    save_file({"anchor": np.zeros((ADAPTERS, SIZE), np.float32), "left": whole}, path)
    left, note = begun(path)
    assert not note
    with running(tmp_path / "after", begin=left) as exchange:
        clients = [member(exchange.port, replica) for replica in range(3)]
        assert round_of(clients, 3, adapters=first, settled=None, version=0)[0][1] == undisturbed[0][0][1]
    with running(tmp_path / "after", port=exchange.port, begin=left):
        assert round_of(clients, 4, adapters=second, settled=3, version=1)[0][1] == undisturbed[1][0][1]


def test_a_checkpoint_without_what_was_left_over_is_gone_on_from_and_a_false_one_is_not(tmp_path: Path) -> None:
    anchor, path = np.zeros((ADAPTERS, SIZE), np.float32), tmp_path / "anchors.safetensors"
    save_file({"anchor": anchor}, path)
    assert begun(path) == ({}, NOTHING_LEFT)
    wide = coded_bytes(SIZE, Payload.INT8)
    nan = np.full((ADAPTERS, wide), 255, np.uint8)
    for false, words in ((nan, "no numbers"), (nan[:, 1:], "has the shape"), (nan[0], "has the shape")):
        save_file({"anchor": anchor, "left": np.ascontiguousarray(false)}, path)
        with pytest.raises(MachineError, match=f"cannot go on from .*{words}"):
            begun(path)
    path.write_bytes(b"garbage")
    with pytest.raises(MachineError, match="cannot go on from"):
        begun(path)


def test_an_exchange_that_gives_a_little_at_a_time_holds_nobody_beyond_the_deadline(tmp_path: Path) -> None:
    """Each byte comes in time, and all of them never."""
    context = server_context(server_credentials(HUB), member_credentials(MEMBERS).certificate)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def trickle() -> None:
            with suppress(OSError), context.wrap_socket(listener.accept()[0], server_side=True) as connection:
                connection.sendall(encode_frame(Kind.RESULT, Result(1, 1), 1 << 20))
                while not ended.wait(0.01):
                    connection.sendall(b"x")

        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        patient = member(listener.getsockname()[1], 0, timeout_s=0.5)
        with pytest.raises(ExchangeError, match="has not answered in time"):
            patient.reduce(part(1), body(delta(0)))
        ended.set()
        patient.close()
        thread.join(60)
        assert not thread.is_alive()


def test_a_state_that_is_larger_than_a_pool_can_have_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by a newcomer nor, before it knows a pool, by the exchange whose disk it would fill."""
    monkeypatch.setattr(states.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    with running(tmp_path) as exchange:
        donor, newcomer = (member(exchange.port, replica) for replica in range(2))
        donate(donor, 4, bytes(1000))
        with pytest.raises(ExchangeError, match="a state of 1000 bytes"):
            newcomer.want(4, most=999)
        donor._send(Kind.OFFER, Piece(5, 0, 300_000, TICKETS.of_donor(5, 0)), bytes(100))
        with pytest.raises(ExchangeError, match="a state of 300000 bytes, and 1048576 are free"):
            donor._await_verdict(5)
        donate(donor, 5, bytes(2000))
        assert newcomer.want(5) == bytes(2000)


def test_an_exchange_of_another_run_is_none(tmp_path: Path) -> None:
    with running(tmp_path) as exchange:
        for changes in ({"hub": "another hub"}, {"secret": "another run's members"}):
            stranger = member(exchange.port, 0, timeout_s=1.0, **changes)
            with pytest.raises(ExchangeError, match="has not answered in time"):
                stranger.reduce(part(1), body(delta(0)))


@pytest.mark.parametrize("words", [{"unusable": (3,)}, {"unusable": (-1,)}, {"plain_norm2": (1.0,)}])
def test_a_result_of_another_round_is_none(words: dict) -> None:
    with pytest.raises(BadFrame, match=r"round of 3 members|norms of 2 adapters"):
        check_result(part(1), Result(1, 1, **words))
