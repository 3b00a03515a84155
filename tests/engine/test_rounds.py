"""The arithmetic of rounds: codecs, means in which every step counts alike, carried progress, agreement of bits."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import kpool, tiny_lora
from tsugi_kpool.core.settings import Payload
from tsugi_kpool.engine import wire
from tsugi_kpool.engine.buffer import ElasticBuffer
from tsugi_kpool.engine.local import LocalUpdate
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.engine.rounds import combine, pack

TOLERANCE = {
    Payload.FP32: 0.0,
    Payload.BF16: 2**-8,
    Payload.INT8: 0.5 / 127 * 1.001,
    Payload.INT4: 0.5 / 7 * 1.001,
    Payload.INT2: 0.25 * (1 + 2**-7) * 1.001,
}
"""Largest error, as a share of the largest value of a block."""


@pytest.mark.parametrize("payload", Payload)
@given(size=st.integers(1, 1200), seed=st.integers(0, 99), scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e6]))
@settings(max_examples=25)
def test_codec_keeps_its_error_bound(payload, size, seed, scale):
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale
    coded = wire.encode(values, payload)
    assert coded.numel() == wire.coded_bytes(size, payload)
    decoded = wire.decode(coded, (size,), payload)
    width = wire.CODES[payload].size if payload in wire.CODES else 256
    for start in range(0, size, width):
        block = slice(start, start + width)
        error = (decoded[block] - values[block]).abs().max()
        assert error <= TOLERANCE[payload] * values[block].abs().max()


@pytest.mark.parametrize("payload", wire.CODES)
def test_zeros_are_coded_as_zeros(payload):
    assert torch.equal(wire.decode(wire.encode(torch.zeros(300), payload), (300,), payload), torch.zeros(300))


def test_int4_takes_two_values_per_byte_and_keeps_its_levels():
    values = torch.cat([torch.arange(-7.0, 8.0).repeat(9)[:128], torch.tensor([7.0, -3.0])])
    coded = wire.encode(values, Payload.INT4)
    assert coded.numel() == 3 * (32 + 4), "three blocks of 64: 32 bytes of nibbles and 4 of scale"
    assert torch.equal(wire.decode(coded, (130,), Payload.INT4), values)


def test_int2_takes_four_values_per_byte_and_a_scale_that_is_rounded_up():
    values = torch.tensor([4.0, -4.0, 1.0, -1.0]).repeat(32)
    coded = wire.encode(torch.cat([values, values[:2] * 1.001]), Payload.INT2)
    assert coded.numel() == 2 * (2 + 32), "two blocks of 128: 2 bytes of scale and 32 of numbers"
    assert coded[:4].view(torch.bfloat16).tolist() == [2.0, 2.015625], "half of the largest number, never below it"
    assert set(coded[4:36].tolist()) == {0b00_10_01_11}
    assert wire.decode(coded, (130,), Payload.INT2)[:4].tolist() == [3.0, -3.0, 1.0, -1.0]


class Replica:
    """A buffer with a training thread that only adds numbers."""

    def __init__(self) -> None:
        self.pool = AdapterPool(tiny_lora(kpool()), n=4)
        self.buffer = ElasticBuffer(LocalUpdate(self.pool))

    def train(self, tokens: int, change: float) -> None:
        self.buffer.apply_rounds()
        with self.buffer.collecting(tokens):
            self.pool.add(range(4), torch.full((4, self.pool.size), change))

    def live(self) -> torch.Tensor:
        return self.pool.read(range(4))

    def anchor(self) -> torch.Tensor:
        return self.buffer.update.anchor


def start(count: int) -> list[Replica]:
    replicas = [Replica() for _ in range(count)]
    for replica in replicas[1:]:
        replica.buffer.adopt(replicas[0].anchor())
    return replicas


def run_round(replicas, adapters, payload=Payload.FP32, error_feedback=True, between=lambda: None):
    """Everybody contributes, `between` happens while the round is in flight, everybody commits."""
    contributions = [replica.buffer.contribution(adapters) for replica in replicas]
    parts = [pack(contribution, payload) for contribution in contributions]
    outcomes = [
        combine(parts, rank, contribution, replicas[rank].buffer.update, payload, error_feedback)
        for rank, contribution in enumerate(contributions)
    ]
    between()
    for replica, contribution, outcome in zip(replicas, contributions, outcomes, strict=True):
        replica.buffer.commit(contribution, outcome)
    return outcomes


def test_of_as_many_steps_each_counts_by_its_supervised_tokens():
    fast, slow = replicas = start(2)
    origin = fast.anchor().clone()
    fast.train(tokens=300, change=1.0)
    slow.train(tokens=100, change=-1.0)
    outcomes = run_round(replicas, (0, 2))
    expected = origin.clone()
    expected[[0, 2]] += 0.5  # (300 * 1 - 100 * 1) / 400
    torch.testing.assert_close(fast.anchor(), expected, atol=1e-6, rtol=0)
    assert outcomes[0].weights == (600, 200), "tokens of each member, summed over the adapters"


def test_the_hub_is_told_what_each_adapter_has_changed():
    """For routing: pooled steps and norm of the mean change."""
    fast, slow = replicas = start(2)
    for replica, change, steps in ((fast, 1.0, 2), (slow, 3.0, 1)):
        for _ in range(steps):
            replica.train(10, change)
    facts = run_round(replicas, (1, 3))[1].adapters
    size = fast.pool.size
    assert [fact.steps for fact in facts] == [3, 3]
    assert facts[0].change_norm == pytest.approx((1.0 + 1.0 + 3.0) / 2 * size**0.5, rel=1e-5), "each step is a half"


def test_progress_made_in_flight_is_carried():
    fast, slow = replicas = start(2)
    origin = fast.anchor().clone()
    fast.train(10, 1.0)
    slow.train(10, 3.0)
    run_round(replicas, (0, 1, 2, 3), between=lambda: fast.train(10, 0.25))
    fast.buffer.apply_rounds()
    torch.testing.assert_close(fast.live(), origin + 2.0 + 0.25, atol=1e-6, rtol=0)
    assert fast.buffer.ledger.buffered(0) == 10, "the step taken in flight is still buffered"
    assert slow.buffer.ledger.buffered(0) == 0


def test_round_of_an_adapter_whose_landing_the_training_thread_has_not_seen():
    """A straggler in a long step: two rounds of the same adapter are committed before its next step."""
    fast, slow = replicas = start(2)
    slow.train(10, 4.0)
    fast.train(10, 0.0)
    run_round(replicas, (0, 1, 2, 3))
    before = slow.anchor().clone()
    fast.train(10, 1.0)
    run_round(replicas, (0, 1, 2, 3))
    torch.testing.assert_close(slow.anchor(), before + 0.5, atol=1e-6, rtol=0)
    slow.buffer.apply_rounds()
    torch.testing.assert_close(slow.live(), slow.anchor(), atol=1e-6, rtol=0)


def test_a_step_of_one_of_two_is_a_half_whether_the_other_has_stepped_or_not():
    fast, idle = replicas = start(2)
    fast.train(10, 1.0)
    origin = idle.anchor().clone()
    run_round(replicas, (0, 1, 2, 3))
    torch.testing.assert_close(fast.anchor(), origin + 0.5, atol=1e-6, rtol=0)


def test_one_replica_is_plain_training_bit_for_bit():
    """Alone, rounds must not touch the live parameters at all."""
    (alone,) = start(1)
    generator = torch.Generator().manual_seed(0)
    expected = alone.live()
    for step in range(20):
        change = torch.randn(4, alone.pool.size, generator=generator)
        alone.buffer.apply_rounds()
        with alone.buffer.collecting(7):
            alone.pool.add(range(4), change)
        expected += change
        run_round([alone], ((step % 4),))
        alone.buffer.apply_rounds()
        assert torch.equal(alone.live(), expected)


@pytest.mark.parametrize("error_feedback", [True, False])
def test_error_feedback_keeps_what_quantisation_lost(error_feedback):
    """With feedback the loss stays in the buffer and is shipped later; without it is forgotten."""
    replicas = start(2)
    generator = torch.Generator().manual_seed(1)
    change = torch.randn(4, replicas[0].pool.size, generator=generator)
    for replica in replicas:
        with replica.buffer.collecting(10):
            replica.pool.add(range(4), change)
    run_round(replicas, (0, 1, 2, 3), Payload.INT8, error_feedback)
    left = replicas[0].buffer.update.snapshot(range(4)).values().abs().max()
    assert (left > 1e-4) if error_feedback else (left < 1e-5)


@pytest.mark.parametrize("seed", range(40))
def test_anchors_stay_bit_identical_and_no_token_is_lost(seed):
    """docs/design.md rules 1 and 2 over random speeds, payloads, selections and rounds that are applied late."""
    draw = random.Random(seed)
    replicas = start(draw.choice([2, 3, 4]))
    payload, feedback = draw.choice(list(Payload)), draw.random() < 0.5
    generator = torch.Generator().manual_seed(seed)

    def work():
        for replica in replicas:
            for _ in range(draw.randint(0, 3)):
                replica.buffer.apply_rounds()
                with replica.buffer.collecting(draw.randint(0, 50)):
                    replica.pool.add(range(4), torch.randn(4, replica.pool.size, generator=generator) * 0.01)

    for _ in range(12):
        work()
        adapters = tuple(sorted(draw.sample(range(4), draw.randint(1, 4))))
        digests = {outcome.digest for outcome in run_round(replicas, adapters, payload, feedback, between=work)}
        assert len(digests) == 1
        assert all(torch.equal(replica.anchor(), replicas[0].anchor()) for replica in replicas)
        for replica in replicas:
            ledger = replica.buffer.ledger
            for adapter in range(4):
                assert ledger.committed[adapter] + ledger.buffered(adapter) == ledger.produced[adapter]
