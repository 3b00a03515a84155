"""A snapshot is of one moment even when its copy ends later, and nobody holds the lock while it is waited for."""

from __future__ import annotations

import pytest
import torch

from tests.support import kpool, tiny_lora
from tsugi_kpool.engine.buffer import ElasticBuffer
from tsugi_kpool.engine.gradient import GradientUpdate
from tsugi_kpool.engine.local import LocalUpdate
from tsugi_kpool.engine.pool import AdapterPool

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Late:
    """A copy that reads its source as late as the rules allow: when it is waited for, or before the next change."""

    def __init__(self, make):
        self._make, self._values = make, None

    def wait(self):
        if self._values is None:
            self._values = self._make()
        return self._values


class LateTransfers:
    """A device that is always behind."""

    def __init__(self):
        self.under_way, self.changing, self.waited_without_lock = [], False, []

    def before_change(self):
        for copy in self.under_way:
            copy.wait()
        self.under_way, self.changing = [], True

    def changed(self):
        self.changing = False

    def to_host(self, make):
        self.under_way.append(Late(make))
        return self.under_way[-1]

    def to_device(self, values):
        return values.clone()

    def settle(self):
        assert not self.changing


def buffer_of(pool, mode):
    if mode == "local":
        return ElasticBuffer(LocalUpdate(pool))
    return ElasticBuffer(GradientUpdate(pool, lambda flat: torch.optim.SGD(flat, lr=0.1), None, 20))


def step(pool, buffer, mode, value):
    """Every number of the pool changes by `value`, or has it as its gradient."""
    buffer.open_step()
    for parameter in pool.parameters():
        if mode == "local":
            parameter.data += value
        else:
            parameter.grad = torch.full_like(parameter, value)
    buffer.close_step(tokens=1, lr=0.1)


@pytest.mark.parametrize("mode", ["local", "gradient"])
@pytest.mark.parametrize("device", ["late", pytest.param("cuda", marks=GPU)])
def test_a_snapshot_shows_the_moment_at_which_it_was_taken(mode, device):
    """The step after it, which the training thread begins at once, is not in it; the one before is, whole."""
    model = tiny_lora(kpool())
    pool = AdapterPool(model.to("cuda") if device == "cuda" else model, n=4)
    if device == "late":
        pool.transfers = LateTransfers()
    buffer = buffer_of(pool, mode)
    step(pool, buffer, mode, 0.5)
    with buffer._lock:
        shipment, snapshot = buffer.ledger.shipment([1, 2]), buffer.update.snapshot([1, 2])
    step(pool, buffer, mode, 0.25)
    assert shipment.tokens == (1, 1)
    assert torch.allclose(snapshot.values(), torch.full((2, pool.size), 0.5), atol=1e-6)
    assert torch.allclose(buffer.contribution([1, 2]).delta, torch.full((2, pool.size), 0.75), atol=1e-6)


def test_the_lock_is_free_while_a_copy_is_waited_for():
    """Training goes on under a slow copy."""
    pool = AdapterPool(tiny_lora(kpool()), n=4)
    buffer = buffer_of(pool, "local")
    free = []

    class Watched(LateTransfers):
        def to_host(self, make):
            def watched():
                free.append(buffer._lock.acquire(blocking=False))
                buffer._lock.release()
                return make()

            return super().to_host(watched)

    pool.transfers = Watched()
    buffer.contribution([0, 3])
    assert free == [True]


@GPU
def test_land_reaches_the_device_and_stays_exact():
    """What is applied from the host is what the next snapshot reads back, bit for bit."""
    pool = AdapterPool(tiny_lora(kpool()).to("cuda"), n=4)
    values = torch.randn(4, pool.size)
    pool.write(values)
    assert torch.equal(pool.read(range(4)), values)
    change = torch.randn(2, pool.size)
    pool.add([3, 0], change)
    assert torch.equal(pool.read([3, 0]), values[[3, 0]] + change)
