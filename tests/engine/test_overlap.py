"""kpool.overlap=false: no step begins while a round is in flight or waits for its Commit."""

from __future__ import annotations

import queue
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from tests.support import await_true, kpool, tiny_lora
from tsugi_kpool.core.messages import Commit, Compare, Drain, Fire, Generation, Message, Reduced
from tsugi_kpool.core.replica.stage import Stage
from tsugi_kpool.core.settings import Mode, Payload
from tsugi_kpool.engine import aggregator, commit_wait
from tsugi_kpool.engine.collective import SingleGroup
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.errors import RoundError
from tsugi_kpool.sideband.signing import Signer

WAIT_S = 60.0


class Uplink:
    """A hub of two queues."""

    def __init__(self) -> None:
        self.orders: queue.Queue[Message] = queue.Queue()
        self.reports: queue.Queue[Reduced] = queue.Queue()
        self.signer = Signer()

    def next_order(self, timeout_s: float) -> Message | None:
        try:
            return self.orders.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def report(self, message: Reduced) -> None:
        self.reports.put(message)

    def sign(self, generation: int, round: int, digest: bytes) -> bytes:
        return self.signer.sign(generation, round, digest)

    def watch(self, heed) -> None:
        del heed

    def nudge(self) -> None:
        return None


@pytest.fixture
def make_engine():
    engines = []

    def make(**changes):
        settings, uplink = kpool(**changes), Uplink()
        engine = KPoolEngine(tiny_lora(settings), settings, 0)
        engine.start(uplink, lambda order: SingleGroup())
        engines.append(engine)
        uplink.orders.put(Generation(1, (0,), 0))
        engine.join()
        return engine, uplink

    yield make
    for engine in engines:
        engine.stop()


def train(engine: KPoolEngine, optimizer: torch.optim.Optimizer) -> None:
    for parameter in engine.pool.parameters():
        parameter.grad = torch.ones_like(parameter)
    engine.apply(optimizer, tokens=5)


def apply_in_a_thread(engine: KPoolEngine) -> threading.Thread:
    thread = threading.Thread(target=engine.apply_rounds)
    thread.start()
    return thread


@pytest.mark.parametrize("mode", Mode)
def test_without_overlap_the_next_step_waits_for_the_commit(make_engine, mode):
    engine, uplink = make_engine(mode=mode, overlap=False)
    optimizer = torch.optim.AdamW(engine.pool.parameters(), lr=1e-3)
    engine.apply_rounds()
    train(engine, optimizer)
    uplink.orders.put(Fire(1, 1, (0, 1), (0,), "count"))
    uplink.reports.get(timeout=WAIT_S)
    waiting = apply_in_a_thread(engine)
    time.sleep(0.05)
    assert waiting.is_alive()
    uplink.orders.put(Commit(1, 1))
    waiting.join(WAIT_S)
    assert not waiting.is_alive()
    assert torch.equal(engine.pool.read([0, 1]), engine.buffer.update.anchor[[0, 1]])
    assert engine.buffer.ledger.committed == [5, 5, 0, 0]


def test_with_overlap_it_does_not(make_engine):
    engine, uplink = make_engine(overlap=True)
    uplink.orders.put(Fire(1, 1, (0, 1), (0,), "count"))
    uplink.reports.get(timeout=WAIT_S)
    thread = apply_in_a_thread(engine)
    thread.join(WAIT_S)
    assert not thread.is_alive()


@pytest.fixture
def stepped(make_engine):
    """An engine of a replica that has a neighbour, and has just ended a step of so many seconds."""

    def step(seconds: float, **changes):
        engine, uplink = make_engine(n=4, k=4, min_steps=1, linger=0.2, **changes)
        uplink.orders.put(Generation(2, (0, 1), 0))
        await_true(lambda: engine.aggregator.members == (0, 1), "the generation of two")
        train(engine, torch.optim.AdamW(engine.pool.parameters(), lr=1e-3))
        engine.report(1, 5, seconds, 1.0, 1e-3)
        return engine, uplink

    return step


def test_who_lingers_begins_on_what_its_own_change_has_become(stepped):
    engine, uplink = stepped(seconds=1e4)
    waiting = apply_in_a_thread(engine)
    uplink.orders.put(Fire(2, 1, (0, 1, 2, 3), (0, 1), "count"))
    uplink.reports.get(timeout=WAIT_S)
    assert waiting.is_alive(), "reduced is not committed"
    uplink.orders.put(Commit(2, 1))
    waiting.join(WAIT_S)
    assert not waiting.is_alive()
    assert engine.buffer.ledger.committed == [5, 5, 5, 5]
    assert engine.version == 1


def test_lingering_ends_when_the_time_is_over_or_the_fleet_stops(stepped):
    engine, _ = stepped(seconds=0.1)
    engine.apply_rounds()  # nobody fires
    assert engine.buffer.pooled() == (1, 1, 1, 1)
    engine, uplink = stepped(seconds=1e4)
    waiting = apply_in_a_thread(engine)
    uplink.orders.put(Drain("enough"))
    waiting.join(WAIT_S)
    assert not waiting.is_alive()


def test_one_step_is_lingered_for_once(stepped):
    """The library applies rounds after a step and before the next one's forward pass."""
    engine, _ = stepped(seconds=0.1)
    engine.apply_rounds()
    for _ in range(3):
        engine.aggregator.linger.stepped(1e4)  # it would wait for half an hour
    thread = apply_in_a_thread(engine)
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_waiting_has_a_deadline(make_engine):
    engine, uplink = make_engine(overlap=False, round_timeout_s=0.3)
    uplink.orders.put(Fire(1, 1, (0, 1), (0,), "count"))
    uplink.reports.get(timeout=WAIT_S)
    time.sleep(0.05)
    with pytest.raises(RoundError, match=r"round 1: reduced and not committed after 0.3 s \(kpool.round_timeout_s\)"):
        engine.apply_rounds()


def test_it_waits_as_long_as_the_hub_waits_for_what_it_asks_of_the_round(make_engine, monkeypatch):
    """Members say what they were told, which may take as long as the round."""
    engine, uplink = make_engine(overlap=False, round_timeout_s=10.0)
    now, looks, failed = [time.monotonic()], [0], []

    def monotonic() -> float:
        looks[0] += threading.current_thread() is waiting
        return now[0]

    def wait() -> None:
        try:
            engine.apply_rounds()
        except RoundError as error:
            failed.append(error)

    def looked_at(seconds: float) -> None:
        """So much time passes, and who waits sees it."""
        now[0], before = now[0] + seconds, looks[0]
        await_true(lambda: failed or looks[0] >= before + 2, "a look at the clock", WAIT_S)

    waiting = threading.Thread(target=wait, daemon=True)
    for module in (aggregator, commit_wait):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=monotonic))
    uplink.orders.put(Fire(1, 1, (0, 1), (0,), "count"))
    uplink.reports.get(timeout=WAIT_S)
    await_true(lambda: engine.aggregator.stage is Stage.REDUCED, "the vote", WAIT_S)
    waiting.start()
    looked_at(9.0)
    uplink.orders.put(Compare(1, 1))
    await_true(lambda: uplink.orders.empty() and engine.aggregator._questions, "the question", WAIT_S)
    looked_at(14.0)  # the hub gives up after 15
    assert not failed
    uplink.orders.put(Compare(1, 1))  # repeated: that gives no more time
    await_true(uplink.orders.empty, "the question again", WAIT_S)
    looked_at(10.0)
    waiting.join(WAIT_S)
    assert "round 1: reduced and not committed after 10 s" in str(failed[0])


def test_gradient_mode_steps_at_the_commit_and_not_before(make_engine):
    engine, uplink = make_engine(mode=Mode.GRADIENT, payload=Payload.FP32)
    optimizer = torch.optim.AdamW(engine.pool.parameters(), lr=1e-3)
    before = engine.pool.read(range(4))
    train(engine, optimizer)
    assert all(parameter.grad is None for parameter in engine.pool.parameters())
    assert not optimizer.state, "the training thread's optimizer is only asked for its learning rate"
    uplink.orders.put(Fire(1, 1, (1,), (0,), "count"))
    uplink.reports.get(timeout=WAIT_S)
    engine.apply_rounds()
    assert torch.equal(engine.pool.read(range(4)), before)
    uplink.orders.put(Commit(1, 1))
    until = time.monotonic() + WAIT_S
    while engine.aggregator.version == 0 and time.monotonic() < until:
        time.sleep(0.01)
    assert torch.equal(engine.pool.read(range(4)), before), "the live parameters are the training thread's"
    engine.apply_rounds()
    moved = (engine.pool.read(range(4)) != before).any(dim=1).tolist()
    assert moved == [False, True, False, False]
