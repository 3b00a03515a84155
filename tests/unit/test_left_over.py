"""What an exchange has left over: shown without copies, and taken from a disk only as numbers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from tsugi_kpool.codec.coding import coded_bytes, decode, encode
from tsugi_kpool.codec.header import header
from tsugi_kpool.core.settings import Payload
from tsugi_kpool.errors import MachineError
from tsugi_kpool.exchange.books import Books, Kept
from tsugi_kpool.exchange.frames import BadFrame, Part, Result
from tsugi_kpool.exchange.reduction import (
    REST,
    Given,
    Left,
    Reduced,
    left_by,
    left_in,
    left_rows,
    opened,
    part_bytes,
    reduce,
    rest_of,
)

SIZE = 64
PART = Part(1, 1, 0, (0, 2), (0, 1), SIZE, "int8", 0)
ROW = encode(np.linspace(-1.0, 1.0, SIZE, dtype=np.float32), Payload.INT8)


def test_whoever_asks_for_it_again_and_again_takes_no_memory() -> None:
    rows = left_rows({0: Left(SIZE, ROW)}, 3)
    assert np.shares_memory(np.asarray(rows[0]), ROW)
    assert rows[1] is rows[2]
    assert [len(row) for row in rows] == [coded_bytes(SIZE, REST)] * 3
    assert left_rows({}, 3) == left_rows({0: Left(SIZE, ROW[:0])}, 3) == []


@pytest.mark.parametrize("payload", Payload)
def test_what_an_exchange_applies_and_has_left_over_is_what_was_sent(payload: Payload) -> None:
    rng, left, shape = np.random.default_rng(0), [None, None], (2, SIZE)
    part, head = msgspec.structs.replace(PART, payload=str(payload)), header([10] * 2, [2] * 2, [0.0] * 2, 0.1)
    sent, applied = np.zeros(shape), np.zeros(shape)
    for _ in range(12):
        codes = [encode(rng.standard_normal(shape).astype(np.float32), payload) for _ in part.members]
        given = {member: Given(part, head.tobytes() + codes[member].tobytes()) for member in part.members}
        assert {len(each.body) for each in given.values()} == {part_bytes(part)}
        reduced, mean = reduce(part, given, rest_of(left, SIZE))
        assert mean is not None
        left = list(left_by(part, mean))
        applied += opened(part, reduced.result, reduced.body)[1]
        sent += np.mean([decode(each, 2 * SIZE, payload).reshape(shape) for each in codes], axis=0)
    np.testing.assert_allclose(applied + rest_of(left, SIZE), sent, atol=0.05)  # int8 of what is left over, 12 times


@pytest.mark.parametrize("changes", [{"adapters": ()}, {"size": 0}, {"size": -1}, {"size": 1 << 60}])
def test_a_record_of_a_round_that_cannot_be_leaves_nothing_over(changes: dict) -> None:
    assert left_in(msgspec.structs.replace(PART, **changes), np.concatenate([ROW, ROW])) is None


def test_books_with_what_are_no_numbers_are_not_gone_on_from(tmp_path: Path) -> None:
    """A run directory may come from somebody else: its checks of sums show accidents only."""
    bad = ROW.copy()
    bad[:4] = np.array([np.nan], np.float32).view(np.uint8)
    books = Books(tmp_path)
    for number, row in ((1, ROW), (2, bad)):
        part = msgspec.structs.replace(PART, round=number)
        books.write(Kept(part, Reduced(Result(1, number), ROW), [Left(SIZE, row)] * 2))
    left, newest, _ = Books(tmp_path).load()
    assert left == {}
    assert newest is not None
    assert newest.part.round == 1, "the one before it is whole"
    books = Books(tmp_path / "built on")
    books.write(Kept(PART, Reduced(Result(1, 1), ROW), [Left(SIZE, bad)] * 2))
    books.write(
        Kept(msgspec.structs.replace(PART, round=2), Reduced(Result(1, 2), ROW), [Left(SIZE, ROW)] * 2), (PART, True)
    )
    with pytest.raises(MachineError, match="round 1 is damaged or missing"):
        Books(tmp_path / "built on").load()


@pytest.mark.parametrize("more", [{"durable": -1}, {"durable": 1 << 60}, {"sequence": 1 << 60}, {"round": 1 << 60}])
def test_a_part_with_a_number_that_no_hub_takes_in_is_none(more: dict) -> None:
    """Else those who report the result would be refused, and wait for ever."""
    with pytest.raises(BadFrame):
        part_bytes(msgspec.structs.replace(PART, **more))
