"""kpool.select_at=train: adapters that do not train keep every bit, and so do their moments."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch

from tests.engine.test_overlap import WAIT_S, Uplink
from tests.support import kpool, tiny_lora
from tsugi_kpool import ConfigError, FleetAdamW
from tsugi_kpool.core.messages import Commit, Fire, Generation
from tsugi_kpool.core.settings import Mode, Payload, SelectAt
from tsugi_kpool.engine.active import Frozen
from tsugi_kpool.engine.collective import SingleGroup
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.library.hooks import Hooks

ADAMW = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
ALL = range(4)
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Trained:
    """One replica whose hub is the test; K = 2 of 4 adapters train."""

    def __init__(self, mode: Mode, select_at: SelectAt = SelectAt.TRAIN) -> None:
        settings = kpool(mode=mode, select_at=select_at, payload=Payload.FP32)
        self.model = tiny_lora(settings).train()
        self.engine, self.uplink = KPoolEngine(self.model, settings, 0, optimizer=ADAMW, grad_clip=1.0), Uplink()
        self.optimizer = ADAMW(self.engine.trainable())
        self.engine.start(self.uplink, lambda order: SingleGroup())
        self.generator = torch.Generator().manual_seed(0)
        self.round = 0

    def begin(self, active: tuple[int, ...]) -> None:
        self.uplink.orders.put(Generation(1, (0,), 0, active))
        self.engine.join()

    def train(self, tokens: int = 5, apply_rounds: bool = True) -> None:
        if apply_rounds:
            self.engine.apply_rounds()
        ids = torch.randint(0, 64, (2, 9), generator=self.generator)
        self.model(input_ids=ids, labels=ids).loss.backward()
        self.engine.apply(self.optimizer, tokens)

    def fire(self, adapters: tuple[int, ...], active: tuple[int, ...], flight=lambda: None) -> None:
        """A round of `adapters`; `flight` happens while it is in flight, `active` train after it."""
        self.round += 1
        self.uplink.orders.put(Fire(1, self.round, adapters, (0,), "count", self.round - 1, adapters))
        self.uplink.reports.get(timeout=WAIT_S)
        flight()
        self.uplink.orders.put(Commit(1, self.round, active))
        until = time.monotonic() + WAIT_S
        while self.engine.aggregator.version < self.round and time.monotonic() < until:
            time.sleep(0.005)

    def live(self) -> torch.Tensor:
        return self.engine.pool.read(ALL)

    def moments(self, adapter: int) -> list[torch.Tensor]:
        """AdamW's state of one adapter, in either mode; empty before its first step."""
        gradient = self.engine.settings.mode is Mode.GRADIENT
        optimizer = self.engine.buffer.update.optimizer if gradient else self.optimizer
        parameter = self.engine.buffer.update.flat[adapter] if gradient else self.engine.trainable()[adapter]
        state = optimizer.state.get(parameter, {})
        return [state[name].clone() for name in MOMENTS if name in state]


@pytest.fixture
def make():
    made = []

    def build(*args) -> Trained:
        made.append(Trained(*args))
        return made[-1]

    yield build
    for each in made:
        each.engine.stop()


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("mode", Mode)
def test_inactive_adapters_and_their_moments_do_not_change_by_one_bit(make, mode):
    """Over two turns, weight decay and clipping included; moments stay through rounds until the next turn."""
    replica = make(mode)
    replica.begin((0, 1))
    for turn in range(4):
        active = ((0, 1), (2, 3))[turn % 2]
        idle = [adapter for adapter in ALL if adapter not in active]
        before, kept = replica.live(), [replica.moments(adapter) for adapter in ALL]
        replica.train()
        replica.train()
        replica.fire(active, tuple(idle))
        replica.engine.apply_rounds()
        after = replica.live()
        moved = (after != before).any(dim=1).tolist()
        assert moved == [adapter in active for adapter in ALL]
        assert torch.equal(after[idle], before[idle])
        for adapter in ALL:
            assert same(replica.moments(adapter), kept[adapter]) == (adapter in idle)
    steps = [float(replica.moments(adapter)[2]) for adapter in ALL]
    assert steps == [4.0] * 4 if mode is Mode.LOCAL else [2.0] * 4, "own steps of an adapter, not of the replica"


@pytest.mark.parametrize("mode", Mode)
def test_with_ship_all_of_them_train(make, mode):
    replica = make(mode, SelectAt.SHIP)
    replica.begin(())
    replica.train()
    replica.fire(tuple(ALL), ())
    before = replica.live()
    replica.engine.apply_rounds()
    moved = replica.live() if mode is Mode.GRADIENT else before
    assert replica.engine.buffer.ledger.produced == [5] * 4
    assert (moved != tiny_rows()).any(dim=1).all()


def tiny_rows() -> torch.Tensor:
    return AdapterPool(tiny_lora(kpool()), 4).read(ALL)


@pytest.mark.parametrize("mode", Mode)
def test_what_is_left_of_an_adapter_is_shipped_at_its_next_turn_or_at_the_end(make, mode):
    """docs/design.md rule 2: a step that is in progress when the active set changes belongs to the old one."""
    replica = make(mode)
    ledger = replica.engine.buffer.ledger
    replica.begin((0, 1))
    replica.train(5)
    replica.fire((0, 1), (2, 3), flight=lambda: replica.train(7))
    replica.train(11, apply_rounds=False)  # it has begun before the Commit was taken in
    assert (ledger.produced, ledger.committed) == ([23, 23, 0, 0], [5, 5, 0, 0])
    replica.train(13)
    assert ledger.produced == [23, 23, 13, 13]
    replica.fire((2, 3), (0, 1))
    replica.train(17)
    replica.fire((0, 1), (2, 3))
    assert ledger.committed == ledger.produced == [40, 40, 13, 13]
    replica.train(1)
    replica.fire(tuple(ALL), (0, 1))  # the last round ships everything
    assert ledger.committed == ledger.produced
    assert ledger.steps == [0] * 4


def test_a_step_of_all_adapters_is_the_matrices_own(make):
    """Flat parameters change how AdamW's state is cut, not one bit of what it does."""
    some, whole = make(Mode.LOCAL, SelectAt.TRAIN), make(Mode.LOCAL, SelectAt.SHIP)
    for replica in (some, whole):
        replica.engine._grad_clip = None  # its norm is summed in another order
        replica.begin(tuple(ALL) if replica is some else ())
        for _ in range(3):
            replica.train()
    assert torch.equal(some.live(), whole.live())


OPTIMIZERS = {
    "AdamW": ADAMW,
    "Adam with decay": partial(torch.optim.Adam, lr=1e-2, weight_decay=0.1),
    "AMSGrad": partial(torch.optim.AdamW, lr=1e-2, amsgrad=True),
    "momentum": partial(torch.optim.SGD, lr=1e-2, momentum=0.9, weight_decay=0.1),
}


@pytest.mark.parametrize("factory", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_optimizer_over_whole_matrices_leaves_inactive_slices_alone(factory):
    """The library's way: values and moments of the others are put back after every step."""
    pool = AdapterPool(tiny_lora(kpool()), 4)
    optimizer, active = factory(pool.parameters()), [(0, 1)]
    frozen = Frozen(pool, lambda: active[0])
    generator = torch.Generator().manual_seed(0)
    for active[0] in [(0, 1), (0, 1), (2,), (0, 3), ()]:
        idle = [adapter for adapter in ALL if active[0] and adapter not in active[0]]
        values, states = pool.read(ALL), moments(pool, optimizer)
        for parameter in pool.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        frozen.save(optimizer)
        optimizer.step()
        frozen.restore(optimizer)
        assert torch.equal(pool.read(idle or [0]), values[idle or [0]]) == bool(idle)
        for name, rows in moments(pool, optimizer).items():
            before = states.get(name, torch.zeros_like(rows))
            assert torch.equal(rows[idle], before[idle]), name
            assert not torch.equal(rows, before)
    frozen.remove()


def test_an_optimizer_that_counts_steps_for_whole_matrices_is_refused():
    """A slice that begins late would take steps several times too long."""
    pool = AdapterPool(tiny_lora(kpool()), 4)
    with pytest.raises(ConfigError, match="not with FleetAdamW"):
        Frozen(pool, lambda: (0, 1)).save(FleetAdamW(pool.parameters(), replicas=2))


def moments(pool: AdapterPool, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Elementwise states as rows of adapters [4, P]."""
    names = {name for state in optimizer.state.values() for name, value in state.items() if value.dim()}
    return {
        name: torch.cat([stacked(pool.shares(p, optimizer.state[p][name])) for p in pool.parameters()], dim=1)
        for name in names
    }


def stacked(shares) -> torch.Tensor:
    return torch.stack([share.reshape(-1) for share in shares])


def test_the_library_trains_only_the_active_adapters(make):
    """Clipping in between measures the active adapters' gradients alone."""
    replica = make(Mode.LOCAL)
    replica.begin((1, 2))
    optimizer = ADAMW(replica.engine.pool.parameters())
    hooks = Hooks(replica.model, replica.engine)
    before, norms = replica.live(), []
    for _ in range(3):
        ids = torch.randint(0, 64, (2, 9), generator=replica.generator)
        replica.model(input_ids=ids, labels=ids).loss.backward()
        active = replica.engine.pool.gradients()[[1, 2]]
        norms.append(
            (float(torch.nn.utils.clip_grad_norm_(replica.engine.pool.parameters(), 1.0)), float(active.norm()))
        )
        optimizer.step()
        optimizer.zero_grad()
    hooks.remove()
    assert (replica.live() != before).any(dim=1).tolist() == [False, True, True, False]
    assert all(clipped == pytest.approx(alone, rel=1e-5) for clipped, alone in norms)
    assert replica.engine.buffer.ledger.produced == [0, 48, 48, 0]
