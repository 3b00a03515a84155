"""The codes of rounds: bits that never change, sums in a fixed order, what the owner of a shard does, its check."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tsugi_kpool.codec.coding import CODES, SLICE, block_size, coded_bytes, decode, decoded, encode, finite
from tsugi_kpool.codec.header import agreed_lr, header, header_bytes, read, shares, unusable
from tsugi_kpool.codec.owner import Owned, average, is_right, quanta
from tsugi_kpool.codec.promises import kept, leaf, promise_bytes, promises, root_of
from tsugi_kpool.codec.shards import Cut
from tsugi_kpool.codec.summing import weighted_sum
from tsugi_kpool.core.settings import Payload

GOLDEN = Path(__file__).parents[1] / "data" / "coded_by_torch.npz"
"""Values, and what torch's arithmetic made of the first so many of them: PAYLOAD_COUNT_coded and _decoded."""
SIZES = (1, 63, 64, 65, 255, 256, 257, 1000)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.mark.parametrize("payload", Payload)
def test_codes_have_the_bits_that_torch_gave_them(golden, payload):
    """Replicas of another version must not decode other numbers: ties, zeros, tiny and large values are in it."""
    for size in (*SIZES, len(golden["values"])):
        coded = encode(golden["values"][:size], payload)
        assert np.array_equal(coded, golden[f"{payload}_{size}_coded"])
        decoded = decode(coded, size, payload)
        assert np.array_equal(decoded.view(np.uint32), golden[f"{payload}_{size}_decoded"].view(np.uint32))


@pytest.mark.parametrize("payload", Payload)
def test_given_memory_is_used_and_odd_addresses_are_read(payload):
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    memory = np.full(coded_bytes(1000, payload), 255, np.uint8)
    coded = encode(values, payload, memory)
    assert coded is memory
    assert np.array_equal(coded, encode(values, payload))
    shifted = np.concatenate([np.zeros(3, np.uint8), coded])[3:]
    out = np.empty(1000, np.float32)
    assert decode(shifted, 1000, payload, out) is out
    assert np.array_equal(out, decode(coded, 1000, payload))


@pytest.mark.parametrize("payload", Payload)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_seen_in_the_codes(payload, bad):
    values = np.ones(600, np.float32)
    assert finite(encode(values, payload), 600, payload)
    values[500] = bad
    assert not finite(encode(values, payload), 600, payload)


@example(values=[float(np.finfo(np.float32).max)], zeros=0)
@example(values=[float(np.finfo(np.float32).smallest_subnormal)], zeros=1)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=200),
    zeros=st.integers(0, 130),
)
@settings(max_examples=100, deadline=None)
def test_two_bits_keep_signs_and_lose_no_more_than_they_say(values, zeros):
    """Of all numbers that there are: the largest, the smallest, and blocks of zeros."""
    numbers, code = np.array(values + [0.0] * zeros, np.float32), CODES[Payload.INT2]
    coded = encode(numbers, Payload.INT2)
    back = decode(coded, numbers.size, Payload.INT2)
    assert finite(coded, numbers.size, Payload.INT2)
    assert (np.signbit(back) == np.signbit(numbers))[numbers != 0].all()
    for start in range(0, numbers.size, code.size):
        block = slice(start, start + code.size)
        largest = np.abs(numbers[block]).max().astype(np.float64)
        lost = np.abs(back[block].astype(np.float64) - numbers[block])
        # Where half of it is no number of its own any more, rounding up is a step of the smallest bf16.
        assert lost.max() <= code.loss * largest + 2.0**-133


@given(coded=st.binary(min_size=68, max_size=68))
@settings(max_examples=50, deadline=None)
def test_any_bytes_are_two_bits_of_numbers_or_known_to_be_none(coded):
    """A part comes from somebody else: whatever it holds, it is decoded alike everywhere or refused."""
    raw = np.frombuffer(coded, np.uint8)
    with np.errstate(all="raise", under="ignore"):
        back = decode(raw, 200, Payload.INT2)
    assert back.tobytes() == np.concatenate([each.copy() for _, each in decoded(raw, 200, Payload.INT2)]).tobytes()
    if finite(raw, 200, Payload.INT2):
        assert np.isfinite(back).all()


def _headers(tokens, steps=None):
    """Of members on so many tokens: [members, ROWS, K]."""
    taken = np.ones_like(tokens) if steps is None else np.array(steps)
    return np.stack([header(list(t), list(s), [0.0] * len(t), 1e-3) for t, s in zip(tokens, taken, strict=True)])


def test_a_sum_does_not_depend_on_how_it_is_sliced():
    rng = np.random.default_rng(1)
    parts = [rng.standard_normal((2, 512)).astype(np.float32) for _ in range(5)]
    weights = shares(_headers(rng.integers(1, 900, (5, 2))))
    whole = weighted_sum([encode(each, Payload.FP32) for each in parts], weights, (2, 512), Payload.FP32).total
    expected = parts[0] * weights[0][:, None]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        expected = expected + part * weight[:, None]
    assert np.array_equal(whole, expected)


@pytest.mark.parametrize("payload", Payload)
def test_a_sum_by_slices_has_the_bits_of_one_by_whole_parts(payload):
    """Slices end inside of rows, and the last block is not full."""
    rng, shape = np.random.default_rng(2), (3, SLICE // 2 + 301)
    parts = [encode(rng.standard_normal(shape).astype(np.float32), payload) for _ in range(3)]
    weights = shares(_headers(rng.integers(1, 900, (3, 3))))
    kept = np.empty(shape, np.float32)
    found = weighted_sum(parts, weights, shape, payload, plain=True, keep=(1, kept))
    whole = [decode(each, kept.size, payload).reshape(shape) for each in parts]
    total, plain = whole[0] * weights[0][:, None], whole[0].copy()
    for part, weight in zip(whole[1:], weights[1:], strict=True):
        total, plain = total + part * weight[:, None], plain + part
    for mine, expected in ((found.total, total), (found.plain, plain), (kept, whole[1])):
        assert mine.tobytes() == expected.tobytes()


def test_headers_keep_their_numbers_and_bad_ones_are_named():
    mine = header([2**50 + 1, 3], [1, 1], [0.5, 0.0], 1e-3)
    part = np.concatenate([mine.reshape(-1).view(np.uint8), np.zeros(9, np.uint8)])
    assert header_bytes(2) == 64
    assert np.array_equal(read(part, 2), mine)
    bad_rate, no_steps = mine.copy(), mine.copy()
    bad_rate[3, 1], no_steps[1, 0] = np.nan, 0
    headers = np.stack([mine, bad_rate, no_steps, mine])
    assert unusable(headers, [True, True, True, False]) == (1, 2, 3)
    assert agreed_lr(np.stack([header([10], [1], [0], 1.0), header([30], [1], [0], 2.0)])) == 1.75


def test_where_all_have_taken_as_many_steps_a_part_counts_by_its_tokens():
    assert shares(_headers([[10, 0], [30, 0]])).tolist() == [[0.25, 0.0], [0.75, 0.0]]
    assert shares(_headers([[10], [30]], [[4], [4]])).tolist() == [[0.25], [0.75]]


def test_every_step_counts_alike_whoever_has_taken_it():
    """Three steps of one are three times one of another, not nine times; who has none moves nobody."""
    assert shares(_headers([[30], [10]], [[3], [1]])).tolist() == [[0.5], [0.5]]
    assert shares(_headers([[20], [0]], [[2], [0]])).tolist() == [[0.5], [0.0]]
    assert shares(_headers([[20]], [[2]])).tolist() == [[1.0]], "alone it is what plain training is"
    assert shares(_headers([[20]], [[2]]), members=4).tolist() == [[0.25]], "the other parts have not come"


def test_smaller_micro_batches_count_less():
    assert shares(_headers([[40], [10]], [[1], [1]])).tolist() == [[np.float32(0.8)], [np.float32(0.2)]]


@given(st.lists(st.tuples(st.integers(0, 2**50), st.integers(1, 2**50)), min_size=1, max_size=9))
@example([(20, 1), (20, 1), (1, 2**50)])
@example([(1000, 1), (7, 70)])
def test_whatever_somebody_says_of_its_steps_a_round_is_no_longer_than_a_mean(members):
    tokens, steps = (np.array(each)[:, None] for each in zip(*members, strict=True))
    found = shares(_headers(tokens, steps))
    assert found.min() >= 0.0
    assert float(found.sum(dtype=np.float64)) <= 1.0 + 1e-6


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40)), min_size=1, max_size=9))
def test_a_round_moves_as_far_as_the_members_have_stepped_on_average(members):
    """Steps of equal sizes, all in one direction: a round is the mean number of steps long."""
    steps = np.array([count for count, _ in members])
    found = shares(_headers(steps[:, None] * 20, steps[:, None]))[:, 0]
    assert float(found @ steps) == pytest.approx(steps.mean(), rel=1e-5)


@pytest.mark.parametrize("payload", Payload)
@given(size=st.integers(1, 3000), owners=st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_shards_cover_an_adapter_once_and_code_it_as_if_it_were_whole(payload, size, owners):
    cut = Cut(size, owners, payload)
    values = np.random.default_rng(size).standard_normal((2, size)).astype(np.float32)
    found, back = np.zeros_like(values), np.zeros_like(values)
    for owner in range(owners):
        shard = cut.shard(values, owner)
        assert shard.shape == (2, cut.width(owner))
        assert cut.width(owner) <= cut.widest
        coded = encode(shard, payload)
        assert coded.size == cut.coded_bytes(owner, 2)
        cut.put(found, owner, shard)
        cut.put(back, owner, decode(coded, shard.size, payload).reshape(shard.shape))
    assert np.array_equal(found, values)
    for row, values_of in zip(back, values, strict=True):
        assert np.array_equal(row, decode(encode(values_of, payload), size, payload))


def owned(rounds: int, payload: Payload, lie=None) -> tuple[list[bool], *tuple[np.ndarray, ...]]:
    """Drive a shard through rounds of three members; `lie` changes the owner's coded mean of the last one."""
    rng, shape = np.random.default_rng(2), (2, 512)
    rest, before = np.zeros(shape, np.float32), np.zeros((2, 512 // block_size(payload)), np.float32)
    verdicts, sent, applied = [], np.zeros(shape), np.zeros(shape)
    for number in range(rounds):
        weights = shares(_headers(rng.integers(1, 900, (3, 2))))
        values = [rng.standard_normal(shape).astype(np.float32) * 10.0 ** rng.integers(-3, 1) for _ in range(3)]
        parts = [encode(each, payload) for each in values]
        result = average(parts, weights, rest, payload)
        if lie is not None and number == rounds - 1:
            result = Owned(lie(result.out.copy(), shape, payload), result.rest, None)
        verdicts.append(is_right(result.out, parts, weights, before, shape, payload))
        for part, weight in zip(parts, weights, strict=True):
            sent += weight[:, None].astype(np.float64) * decode(part, rest.size, payload).reshape(shape)
        applied += decode(result.out, rest.size, payload).reshape(shape)
        rest, before = result.rest, quanta(result.out, shape, payload)
    return verdicts, sent, applied, rest


@pytest.mark.parametrize("payload", Payload)
def test_what_is_applied_and_what_the_owner_keeps_is_what_was_sent(payload):
    verdicts, sent, applied, rest = owned(12, payload)
    assert all(verdicts), "an honest owner is never accused"
    np.testing.assert_allclose(applied + rest, sent, atol=1e-4)


@pytest.mark.parametrize("payload", Payload)
@given(seed=st.integers(0, 10**6), heavy=st.floats(0.0, 3.0), zeros=st.floats(0.0, 1.0))
@settings(max_examples=10, deadline=None)
def test_no_honest_owner_is_accused_whatever_the_numbers_are(payload, seed, heavy, zeros):
    """Long tails, blocks of zeros, and parts that are thousands of times larger than those before and after."""
    rng, shape = np.random.default_rng(seed), (2, 512)
    rest, before = np.zeros(shape, np.float32), np.zeros((2, 512 // block_size(payload)), np.float32)
    for _ in range(4):
        weights = shares(_headers(rng.integers(0, 900, (3, 2))))
        tails = [rng.standard_normal(shape) * np.exp(heavy * rng.standard_normal(shape)) for _ in range(3)]
        blanks = [np.repeat(rng.random((2, 32)) >= zeros, 16, axis=1) for _ in range(3)]
        values = [tail * kept * 10.0 ** rng.integers(-6, 3) for tail, kept in zip(tails, blanks, strict=True)]
        parts = [encode(each.astype(np.float32), payload) for each in values]
        result = average(parts, weights, rest, payload)
        assert is_right(result.out, parts, weights, before, shape, payload)
        moved = weights.any(axis=0)
        rest = result.rest
        before = np.where(moved[:, None], quanta(result.out, shape, payload), before)


def doubled(out, shape, payload):
    return encode(2 * decode(out, shape[0] * shape[1], payload), payload)


def one_number(out, shape, payload):
    values = decode(out, shape[0] * shape[1], payload).copy()
    values[77] += 2.0 * np.abs(values).max()
    return encode(values, payload)


def none(out, shape, payload):
    return encode(np.full(shape, np.nan, np.float32), payload)


@pytest.mark.parametrize("payload", Payload)
@pytest.mark.parametrize("lie", [doubled, one_number, none])
def test_a_wrong_mean_is_found(payload, lie):
    verdicts = owned(5, payload, lie)[0]
    assert verdicts == [True] * 4 + [False]


@pytest.mark.parametrize("payload", CODES)
def test_an_owner_that_knows_the_bound_gains_no_more_than_its_code_loses(payload):
    """It may claim any residual of up to half a quantum. Two and a half quanta of the block are found."""

    def shifted(out, shape, payload):
        code = CODES[payload]
        scales, _ = code.parts(out, 1024)
        values = decode(out, 1024, payload).reshape(-1, code.size)
        low = np.where(values > 0, values - 2.5 * scales[:, None], values + 2.5 * scales[:, None])
        return encode(low.reshape(shape).astype(np.float32), payload)

    assert owned(1, payload, shifted)[0] == [False]


def test_where_nobody_has_weight_nothing_moves_and_the_residual_stays():
    rest = np.full((2, 256), 0.25, np.float32)
    parts = [encode(np.ones((2, 256), np.float32), Payload.INT8)] * 2
    found = average(parts, shares(_headers(np.array([[0, 4], [0, 4]]))), rest, Payload.INT8)
    applied = decode(found.out, 512, Payload.INT8).reshape(2, 256)
    assert not applied[0].any()
    assert np.array_equal(found.rest[0], rest[0])
    np.testing.assert_allclose(applied[1] + found.rest[1], 1.25, atol=1e-6)


@pytest.mark.parametrize("members", [1, 2, 3, 4, 5, 8, 9, 33])
def test_a_promise_binds_a_member_to_what_it_sends_to_each_owner(members):
    codes = [np.full(10, owner, np.uint8) for owner in range(members)]
    bound = promises([leaf(each) for each in codes])
    assert {len(each) for each in bound} == {promise_bytes(members)}
    assert len({root_of(each) for each in bound}) == 1
    for owner, promise in enumerate(bound):
        assert kept(promise, owner, codes[owner])
        assert not kept(promise, owner, codes[owner] + np.uint8(1))
        assert members == 1 or not kept(promise, (owner + 1) % members, codes[owner])
