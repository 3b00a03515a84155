"""Replicas whose rounds are reduced at an exchange: equal anchors, nothing lost, newcomers, other generations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from tests.engine.test_overlap import WAIT_S, Uplink
from tests.exchange.support import TICKETS, Running, member
from tests.support import await_true, kpool, tiny_lora
from tsugi_cli.launch.looking import Expected, check_checkpoint
from tsugi_kpool.core.checkpoint import ANCHORS
from tsugi_kpool.core.hub.outgoing import thin
from tsugi_kpool.core.hub.votes import agreed_on
from tsugi_kpool.core.messages import Abort, Broken, Commit, Fire, Generation, Message, Reduced, Saved
from tsugi_kpool.core.rounds.closing import Quorum
from tsugi_kpool.core.settings import Payload
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.engine.state import moments
from tsugi_kpool.errors import LaunchError
from tsugi_kpool.exchange.books import Books
from tsugi_kpool.exchange.process import begun
from tsugi_kpool.exchange.reduction import rest_of
from tsugi_kpool.exchange.rounds import EVERYBODY

pytestmark = pytest.mark.timeout(120)

ALL = (0, 1, 2, 3)


class Fleet:
    """Engines of one process, their exchange, and a hub that is the test."""

    def __init__(self, folder: Path, replicas: int, quorum: Quorum = EVERYBODY) -> None:
        self.exchange = Running(folder, replicas, adapters=len(ALL), quorum=quorum)
        self._kept = folder / "checkpoints"
        self.settings = kpool(payload=Payload.INT4, linger=0.2)
        self.generation = self.round = self.version = self.shared = 0
        self.members: tuple[int, ...] = ()
        self.engines: list[KPoolEngine] = []
        self.uplinks: list[Uplink] = []
        self.optimizers: list[torch.optim.Optimizer] = []
        for _ in range(replicas):
            self.come()

    def come(self, replica: int | None = None) -> None:
        """Another process: a new replica, or the next one in a place."""
        number = len(self.engines) if replica is None else replica
        engine, uplink = KPoolEngine(tiny_lora(self.settings), self.settings, number), Uplink()
        engine.keep(self._kept)
        engine.start(uplink, exchange=member(self.exchange.port, number, timeout_s=WAIT_S))
        optimizer = torch.optim.AdamW(engine.pool.parameters(), lr=1e-2)
        if replica is None:
            self.engines.append(engine)
            self.uplinks.append(uplink)
            self.optimizers.append(optimizer)
        else:
            self.engines[number], self.uplinks[number], self.optimizers[number] = engine, uplink, optimizer

    def form(self, *members: int, newcomers: Sequence[int] = (), donor: int = 0) -> None:
        self.generation, self.members = self.generation + 1, members
        order = TICKETS.put(Generation(self.generation, members, self.version, (), tuple(newcomers), donor))
        for each in members:
            self.uplinks[each].orders.put(order)
        for each in members:
            aggregator = self.engines[each].aggregator
            await_true(
                lambda found=aggregator: (
                    found.membership.generation == self.generation and str(found.stage) == "idle"
                ),
                "a generation",
            )

    def train(self, replica: int, seed: int, tokens: int = 5) -> None:
        draw = torch.Generator().manual_seed(seed)
        engine = self.engines[replica]
        engine.apply_rounds()
        for parameter in engine.pool.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        engine.apply(self.optimizers[replica], tokens)

    def fire(self, adapters: Sequence[int], *members: int) -> None:
        """Order a round; of these members, where not of all: the others have not heard of it yet."""
        self.round += 1
        words = (self.generation, self.round, tuple(adapters), self.members, "count")
        fire = Fire(*words, version=self.version, shared=self.shared)
        self.order = thin(TICKETS.put(fire))  # as on the wire
        for each in members or self.members:
            self.uplinks[each].orders.put(self.order)

    def reports(self, *members: int) -> list[Reduced]:
        return [self.uplinks[each].reports.get(timeout=WAIT_S) for each in members or self.members]

    def counts(self) -> None:
        """The hub has committed the round."""
        self.version += 1
        self.shared = self.round if len(self.members) > 1 else self.shared

    def commit(self, save: bool = False, writer: int | None = None) -> None:
        self.counts()
        for each in self.members:
            self.uplinks[each].orders.put(Commit(self.generation, self.round, save=save, writer=writer))
        for each in self.members:
            aggregator = self.engines[each].aggregator
            await_true(lambda found=aggregator: found.version == self.version, "a commit")

    def reduce(self, adapters: Sequence[int]) -> list[Reduced]:
        """A whole round."""
        self.fire(adapters)
        found = self.reports()
        assert len({each.digest for each in found}) == 1, found
        self.commit()
        return found

    def stop(self) -> None:
        for engine in self.engines:
            engine.stop()
        self.exchange.kill()

    def live(self, replica: int) -> torch.Tensor:
        self.engines[replica].apply_rounds()
        return self.engines[replica].pool.read(ALL)

    def left_over(self) -> torch.Tensor:
        """What the exchange owes the fleet, of rounds that count and of the newest one."""
        rounds = self.exchange.exchange._rounds
        found = torch.zeros(4, self.engines[0].pool.size)
        newest = rounds.newest
        left = rounds._left | (
            dict(zip(newest.part.adapters, newest.left, strict=True)) if newest is not None else {}
        )
        for adapter, each in left.items():
            found[adapter] = torch.from_numpy(rest_of([each], found.shape[1])[0])
        return found

    def tolerance(self) -> float:
        """What is left over is coded by 8 bits itself: each round of an adapter takes up to 1/254 of it along."""
        return self.version * float(self.left_over().abs().max()) / 254 + 2e-6


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def make(replicas: int, quorum: Quorum = EVERYBODY) -> Fleet:
        made.append(Fleet(tmp_path, replicas, quorum))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def test_anchors_are_the_same_bits_and_nothing_that_was_trained_is_lost(fleet: Callable[..., Fleet]) -> None:
    """The mean of what all have trained is in the live parameters and in what the exchange has left over."""
    three = fleet(3)
    three.form(0, 1, 2)
    trained = torch.zeros(4, three.engines[0].pool.size)
    for number in range(8):
        for replica in range(3):
            before = three.live(replica)
            three.train(replica, 10 * number + replica)
            trained += (three.live(replica) - before) / 3
        found = three.reduce((0, 1) if number % 2 else (2, 3))
        assert found[0].weights == ((10 if number == 0 else 20),) * 3
        assert [(each.weights, each.counted) for each in found] == [(found[0].weights, (0, 1, 2))] * 3
    anchors = [engine.buffer.update.anchor for engine in three.engines]
    assert all(torch.equal(each, anchors[0]) for each in anchors)
    start = KPoolEngine(tiny_lora(three.settings), three.settings, 0).pool.read(ALL)
    mean = sum(three.live(replica) for replica in range(3)) / 3
    left = three.left_over()
    assert left.abs().max() > 1e-4, "4 bits lose something"
    torch.testing.assert_close(mean + left, start + trained, rtol=0, atol=three.tolerance())
    sizes = {engine.aggregator.received_bytes / engine.aggregator.sent_bytes for engine in three.engines}
    assert max(sizes) < 1.2, "one payload up and one down, whatever the number of members"


def test_an_aborted_round_a_missed_commit_and_a_fleet_of_one_lose_nothing_either(
    fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    two = fleet(2)
    two.form(0, 1)
    trained = torch.zeros(4, two.engines[0].pool.size)

    def step(*replicas: int) -> None:
        nonlocal trained
        for replica in replicas:
            before = two.live(replica)
            two.train(replica, int(trained.abs().sum() * 1000) + replica)
            trained += (two.live(replica) - before) / 2

    step(0, 1)
    two.reduce(ALL)
    step(0, 1)
    two.fire(ALL)
    two.reports()
    for each in two.members:
        two.uplinks[each].orders.put(Abort(two.generation, two.round, "because"))
    step(0, 1)
    two.fire(ALL)
    two.reports()
    two.counts()  # nobody hears its Commit: the next order tells
    step(0, 1)
    two.reduce(ALL)
    start = KPoolEngine(tiny_lora(two.settings), two.settings, 0).pool.read(ALL)
    mean = (two.live(0) + two.live(1)) / 2
    torch.testing.assert_close(mean + two.left_over(), start + trained, rtol=0, atol=two.tolerance())
    two.fire(ALL)
    two.reports()
    newest = two.exchange.exchange._rounds.newest
    assert newest is not None
    void = newest.part.round
    assert void == two.round
    two.engines[1].stop()
    two.form(0)  # that round is void, and the next one has one member: the version is as if it had counted
    two.train(0, 99)
    two.reduce(ALL)
    two.come(1)
    two.form(0, 1, newcomers=(1,))
    two.train(0, 100)
    two.train(1, 101)
    two.reduce(ALL)
    two.exchange.kill()
    left, last, _ = Books(tmp_path).load()
    assert last is not None
    assert last.part.round == two.round
    assert void not in [held[1] for held in two.exchange.exchange._books._of.values()], "what it leaves is nobody's"
    assert set(left) == set(ALL)
    anchors = [engine.buffer.update.anchor for engine in two.engines]
    assert torch.equal(*anchors)


def test_a_newcomer_gets_anchors_and_moments_and_nobody_else_is_asked(fleet: Callable[..., Fleet]) -> None:
    three = fleet(3)
    three.form(0, 1)
    for number in range(3):
        three.train(0, number)
        three.train(1, 50 + number)
        three.reduce(ALL)
    three.train(0, 7)
    three.train(1, 8)
    received = three.engines[1].aggregator.received_bytes
    three.form(0, 1, 2, newcomers=(2,), donor=0)
    assert torch.equal(three.engines[2].buffer.update.anchor, three.engines[0].buffer.update.anchor)
    assert three.engines[2].aggregator.version == 3
    three.engines[2].apply_rounds()
    three.engines[2].prepare(three.optimizers[2])
    ours, theirs = moments(three.optimizers[2]), moments(three.optimizers[0])
    assert ours
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert three.engines[1].aggregator.received_bytes == received
    three.train(2, 9)
    found = three.reduce(ALL)
    assert found[0].weights == (20, 20, 20)


def test_an_exchange_that_is_killed_in_a_round_costs_no_generation(
    fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    two = fleet(2)
    two.form(0, 1)
    for number in range(2):
        two.train(0, number)
        two.train(1, 50 + number)
        two.reduce(ALL)
    left = two.left_over()
    two.train(0, 3)
    two.train(1, 4)
    two.exchange.kill()
    two.fire(ALL)
    two.exchange = Running(tmp_path, 2, two.exchange.port)
    assert torch.equal(two.left_over(), left)
    found = two.reports()
    assert not any(isinstance(each, Broken) for each in found)
    two.commit()
    assert torch.equal(two.engines[0].buffer.update.anchor, two.engines[1].buffer.update.anchor)


def test_what_the_exchange_has_left_over_is_in_a_checkpoint(fleet: Callable[[int], Fleet], tmp_path: Path) -> None:
    two = fleet(2)
    two.form(0, 1)
    two.train(0, 1)
    two.train(1, 2)
    first = two.reduce(ALL)
    two.train(0, 3)
    two.train(1, 4)
    two.fire(ALL[:2])
    second = two.reports()
    two.commit(save=True)
    saved = two.uplinks[0].reports.get(timeout=WAIT_S)
    assert isinstance(saved, Saved)
    assert (saved.file, saved.error) == (ANCHORS, "")
    path = next((tmp_path / "checkpoints").glob(f"*/{ANCHORS}"))
    left, note = begun(path)
    assert not note
    # The hub's machine, without torch, finds in it what the votes on these rounds have said.
    said = agreed_on(agreed_on({}, ALL[:2], second[0].digest), ALL[2:], "")
    check_checkpoint(path.parent, [ANCHORS], Expected(len(ALL), digests=tuple(said.items())))
    with pytest.raises(LaunchError, match="other anchors of adapters 0, 1, 2, 3 than the fleet has agreed on"):
        check_checkpoint(path.parent, [ANCHORS], Expected(len(ALL), digests=((ALL, first[0].digest),)))
    expected = two.left_over()
    found = torch.from_numpy(rest_of([left[adapter] for adapter in ALL], expected.shape[1]))
    assert expected.any()
    assert torch.equal(found, expected), "of the round that was just committed, and of those before it"
    before = path.read_bytes()
    path.unlink()
    two.fire(ALL)
    two.reports()
    two.commit(save=True, writer=1)
    saved = two.uplinks[1].reports.get(timeout=WAIT_S)
    assert (saved.file, saved.error) == (ANCHORS, ""), "whom the hub names writes them, not the first member"
    assert next((tmp_path / "checkpoints").glob(f"*/{ANCHORS}")).read_bytes() != before


def test_without_an_exchange_the_round_is_broken_and_says_where_it_was_looked_for(
    fleet: Callable[..., Fleet],
) -> None:
    two = fleet(2)
    two.form(0, 1)
    two.train(0, 1)
    for engine in two.engines:
        exchange = engine._exchange
        assert exchange is not None
        exchange._timeout_s = 0.5
    two.exchange.kill()
    two.fire(ALL)
    (broken, _) = two.reports()
    assert isinstance(broken, Broken)
    assert f"the exchange at 127.0.0.1:{two.exchange.port} has not answered in time" in broken.reason
    two.uplinks[0].orders.put(two.order)
    assert two.reports(0) == [broken], "a hub that says it again has not heard of it"


def test_a_part_that_comes_too_late_stays_buffered_and_is_in_the_next_round(fleet: Callable[..., Fleet]) -> None:
    three = fleet(3, Quorum(0.5, 0.0, WAIT_S))
    three.form(0, 1, 2)
    start = three.live(2)
    for replica in range(3):
        three.train(replica, replica)
    trained = three.live(2) - start
    three.fire(ALL, 0, 1)
    first = three.reports(0, 1)
    assert [(each.counted, each.weight) for each in first] == [((0, 1), 20), ((0, 1), 20)]
    three.uplinks[2].orders.put(three.order)
    (late,) = three.reports(2)
    assert (late.counted, late.weights, late.weight) == ((), (), 0)
    assert late.digest == first[0].digest
    three.commit()
    anchors = [engine.buffer.update.anchor for engine in three.engines]
    assert all(torch.equal(each, anchors[0]) for each in anchors)
    ledger = three.engines[2].buffer.ledger
    assert (ledger.committed, ledger.steps, ledger.durable) == ([0] * 4, [1] * 4, 0)
    seen = [engine.aggregator.linger._steps for engine in three.engines]
    assert seen == [((4, 4),), ((4, 4),), ()], "who is not in a round has no place among its steps"
    torch.testing.assert_close(three.live(2) - anchors[2], trained, rtol=0, atol=1e-6)
    three.fire(ALL, 2)
    three.uplinks[0].orders.put(three.order)
    found = three.reports(0, 2)
    three.uplinks[1].orders.put(three.order)
    three.reports(1)
    assert found[1].weight == 20
    assert 2 in found[1].counted
    three.commit()
    assert ledger.committed == ledger.produced == [5] * 4
    assert ledger.durable == ledger.samples


def test_who_is_left_alone_in_a_round_has_it_coded_as_all_have(fleet: Callable[..., Fleet]) -> None:
    """The other one comes too late, and must get the same anchors."""
    two = fleet(2, Quorum(0.5, 0.0, WAIT_S))
    two.form(0, 1)
    two.train(0, 1)
    two.train(1, 2)
    two.fire(ALL, 0)
    (first,) = two.reports(0)
    two.uplinks[1].orders.put(two.order)
    (late,) = two.reports(1)
    assert (first.counted, late.counted) == ((0,), ())
    assert first.digest == late.digest
    two.commit()
    assert torch.equal(*(engine.buffer.update.anchor for engine in two.engines))


def behind(three: Fleet, replica: int, *orders: Message) -> None:
    """Orders to one that is behind, as they come: its link looks at each before its thread does."""
    for order in orders:
        three.engines[replica].aggregator.heed(order)
        three.uplinks[replica].orders.put(order)


def a_round_of_two(three: Fleet, adapters: Sequence[int]) -> tuple[Fire, Commit]:
    """A round that is committed before the third member has heard of it."""
    three.fire(adapters, 0, 1)
    found = three.reports(0, 1)
    assert all(each.receipt == TICKETS.of_result(each.generation, each.round, each.told) for each in found)
    three.counts()
    commit = Commit(three.generation, three.round, missed=(2,))
    for each in (0, 1):
        three.uplinks[each].orders.put(commit)
    await_versions(three, 0, 1)
    return three.order, commit


def await_versions(three: Fleet, *members: int) -> None:
    for each in members:
        aggregator = three.engines[each].aggregator
        await_true(lambda found=aggregator: found.version == three.version, "a commit")


def test_who_is_behind_takes_the_rounds_in_order_and_keeps_what_it_has_trained(fleet: Callable[..., Fleet]) -> None:
    three = fleet(3, Quorum(0.5, 0.0, WAIT_S))
    three.form(0, 1, 2)
    for replica in range(3):
        three.train(replica, replica)
    first = a_round_of_two(three, (0, 1))
    three.train(0, 10)
    second = a_round_of_two(three, (2, 3))
    late = three.engines[2]
    behind(three, 2, *reversed(first), *first, second[0])
    votes = three.reports(2, 2)
    assert [(each.round, each.weight) for each in votes] == [(1, 0), (2, 0)]
    assert late.aggregator.version == 1
    behind(three, 2, second[1])
    await_versions(three, 2)
    anchors = [engine.buffer.update.anchor for engine in three.engines]
    assert all(torch.equal(each, anchors[0]) for each in anchors)
    assert [late.buffer.ledger.buffered(adapter) for adapter in ALL] == [5] * 4
    three.exchange.exchange._rounds._quorum = EVERYBODY
    found = three.reduce(ALL)
    assert found[0].counted == (0, 1, 2)
    assert found[0].weights[2] == 20, "all of it is in the next round"
    anchors = [engine.buffer.update.anchor for engine in three.engines]
    assert all(torch.equal(each, anchors[0]) for each in anchors)


def test_a_generation_waits_for_the_committed_round_that_a_member_lacks(fleet: Callable[..., Fleet]) -> None:
    three = fleet(3, Quorum(0.5, 0.0, WAIT_S))
    three.form(0, 1, 2)
    for replica in range(3):
        three.train(replica, replica)
    first = a_round_of_two(three, (0, 1))
    order = TICKETS.put(Generation(2, (0, 1, 2), three.version))
    behind(three, 2, order, *first, order)
    assert three.reports(2)[0].round == 1
    aggregator = three.engines[2].aggregator
    await_true(lambda: aggregator.membership.generation == 2, "the generation")
    assert aggregator.version == 1
    assert torch.equal(three.engines[2].buffer.update.anchor, three.engines[0].buffer.update.anchor)
