"""The codes of a round's numbers: fp32, bf16, or int8, int4 and int2 with one scale for every block of values.

Coding and decoding are plain elementwise arithmetic in fp32, in a fixed order, so that every machine turns the same
bytes into the same bits. They work on a slice that fits into a core's cache at a time: that is several times faster
than whole passes over the memory, and takes no memory of the payload's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsugi_kpool.core.settings import Payload

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


SCALE_BYTES = 4
BF16_STEP = 2.0**-7
"""From a bf16 to the next one, as a share of it at most."""


@dataclass(frozen=True)
class Blocks:
    """A symmetric block code: `size` values share one scale, and the largest of them is `levels` times it.

    Codes of 8 and 4 bits are integers in [-levels, levels]. Those of 2 bits are a sign and a size, 1/2 or 3/2. So
    coding loses half a scale of a number at most.
    """

    size: int
    levels: float
    bits: int
    scale_bytes: int = SCALE_BYTES
    """4: fp32. 2: bf16, rounded up."""

    @property
    def packed(self) -> int:
        """Bytes of a block's numbers."""
        return self.size * self.bits // 8

    @property
    def loss(self) -> float:
        """The most that coding loses of a number, as a share of the block's largest one."""
        return 0.5 / self.levels * (1.0 if self.scale_bytes == SCALE_BYTES else 1.0 + BF16_STEP)

    @property
    def most(self) -> float:
        """The most scales that bytes can say: one level more than `encode` uses, where they have room for it."""
        return 1.5 if self.bits == 2 else self.levels + 1.0

    def parts(self, coded: Bytes, count: int) -> tuple[Floats, Bytes]:
        """Return the scales [blocks] and the packed numbers [blocks, bytes] of `count` values' codes."""
        blocks = -(-count // self.size)
        scales, packed = coded[: self.scale_bytes * blocks], coded[self.scale_bytes * blocks :]
        packed = packed.reshape(blocks, self.packed)
        if self.scale_bytes == SCALE_BYTES:
            return scales.view(np.float32), packed
        wide = np.empty(blocks, np.float32)
        _from_bf16(scales.view(np.uint16), wide)
        return wide, packed


CODES = {
    Payload.INT8: Blocks(256, 127.0, 8),
    Payload.INT4: Blocks(64, 7.0, 4),
    Payload.INT2: Blocks(128, 2.0, 2, scale_bytes=2),
}
"""4 bytes of scale for 256 of codes are 1.6 % more. 15 levels need narrower blocks: 4 for 32 are 12.5 % more. For
four levels a scale of 2 bytes is exact enough: 2 for 32 are 6.3 % more."""
SIGNED = np.array([-0.5, -1.5, 0.5, 1.5], np.float32)
"""What a number of 2 bits says, the higher bit its sign and the lower its size."""
FOURS = SIGNED[(np.arange(256)[:, None] >> np.array([0, 2, 4, 6])) & 3]
"""[256, 4]: the four numbers of a byte."""
PLAIN_BLOCK = 256
NIBBLE_ZERO = 8
"""The nibble that means 0, so that -7 to 7 are 1 to 15."""
SLICE = 1 << 15
"""Numbers that are worked on at a time: 128 KiB of fp32, which stay in the cache."""
SMALLEST = np.finfo(np.float32).tiny
WIDTHS = {Payload.FP32: 4, Payload.BF16: 2}
NOT_A_NUMBER = 0x7FC0
"""bf16's."""


def coded_bytes(count: int, payload: Payload) -> int:
    """Return the bytes that `encode` makes of `count` values."""
    if payload in WIDTHS:
        return count * WIDTHS[payload]
    code = CODES[payload]
    return -(-count // code.size) * (code.packed + code.scale_bytes)


def block_size(payload: Payload) -> int:
    """Return how many numbers are coded together; those of a code without blocks are cut at these limits, too."""
    return CODES[payload].size if payload in CODES else PLAIN_BLOCK


def encode(values: Floats, payload: Payload, out: Bytes | None = None) -> Bytes:
    """Code fp32 `values` of any shape as flat bytes.

    Args:
        values: What is coded. A value that is not finite makes its whole block so when it is decoded.
        payload: The code.
        out: Where the bytes go, of `coded_bytes` and aligned to 4; None makes a new array (of fp32 a view).
    """
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    if payload is Payload.FP32 and out is None:
        return flat.view(np.uint8)
    coded = np.empty(coded_bytes(flat.size, payload), np.uint8) if out is None else out
    if payload is Payload.FP32:
        coded.view(np.float32)[:] = flat
    elif payload is Payload.BF16:
        _to_bf16(flat, coded.view(np.uint16))
    else:
        _to_blocks(flat, CODES[payload], coded)
    return coded


def decode(coded: Bytes, count: int, payload: Payload, out: Floats | None = None) -> Floats:
    """Turn the bytes of `encode` back into `count` flat fp32 values.

    Args:
        coded: The bytes, at any alignment.
        count: How many values they are of.
        payload: The code.
        out: Where the values go, [count] and contiguous; None makes a new array (of fp32 a view).
    """
    coded = aligned(coded)
    if payload is Payload.FP32 and out is None:
        return coded.view(np.float32)
    values = np.empty(count, np.float32) if out is None else out
    if payload is Payload.FP32:
        values[:] = coded.view(np.float32)
    elif payload is Payload.BF16:
        _from_bf16(coded.view(np.uint16), values)
    else:
        _from_blocks(coded, CODES[payload], values)
    return values


def decoded(coded: Bytes, count: int, payload: Payload) -> Iterator[tuple[slice, Floats]]:
    """Yield what `decode` gives, a slice at a time: its place, and the values, which the next slice overwrites.

    Whoever goes on with them while they are in the core's cache saves passes over the memory.
    """
    coded, scratch = aligned(coded), np.empty(min(count, SLICE), np.float32)
    if payload in CODES:
        code = CODES[payload]
        scales, packed = code.parts(coded, count)
    for part in slices(count, SLICE):
        values = scratch[: part.stop - part.start]
        if payload is Payload.FP32:
            values[:] = coded.view(np.float32)[part]
        elif payload is Payload.BF16:
            _from_bf16(coded.view(np.uint16)[part], values)
        else:
            first, last = part.start // code.size, -(-part.stop // code.size)
            _blocks_to(scales[first:last], packed[first:last], code, values)
        yield part, values


def finite(coded: Bytes, count: int, payload: Payload) -> bool:
    """Return whether all values that these bytes are of are finite numbers. A block code shows it by its scales."""
    coded = aligned(coded)
    if not count:
        return True
    if payload in WIDTHS:
        return bool(np.isfinite(np.abs(decode(coded, count, payload)).max()))
    code = CODES[payload]
    scales, _ = code.parts(coded, count)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.abs(scales).max() * np.float32(code.most)))


def aligned(coded: Bytes) -> Bytes:
    """Return the same bytes so that they can be viewed as wider numbers: a copy, if they begin at an odd address."""
    return coded if coded.ctypes.data % SCALE_BYTES == 0 and coded.flags.c_contiguous else coded.copy()


def slices(count: int, step: int) -> Iterator[slice]:
    """Yield the slices of at most `step` that `count` things are worked on in."""
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def _to_bf16(flat: Floats, out: NDArray[np.uint16]) -> None:
    """Round to the nearest, ties to even, as torch does."""
    for part in slices(flat.size, SLICE):
        bits = flat[part].view(np.uint32)
        rounded = (bits >> 16) & 1
        rounded += 0x7FFF
        rounded += bits
        rounded >>= 16
        out[part] = rounded
        nan = np.isnan(flat[part])
        if nan.any():
            out[part][nan] = NOT_A_NUMBER


def _to_blocks(flat: Floats, code: Blocks, coded: Bytes) -> None:
    whole = flat.size // code.size
    scales, packed = code.parts(coded, flat.size)
    each = flat[: whole * code.size].reshape(whole, code.size)
    for part in slices(whole, SLICE // code.size):
        _code(each[part], code, scales[part], packed[part])
    if whole < len(scales):
        last = np.zeros((1, code.size), np.float32)
        last[0, : flat.size - whole * code.size] = flat[whole * code.size :]
        _code(last, code, scales[whole:], packed[whole:])
    if code.scale_bytes < SCALE_BYTES:  # `parts` has widened them, so they are not in place
        narrow = coded[: code.scale_bytes * len(scales)].view(np.uint16)
        np.right_shift(scales.view(np.uint32), 16, out=narrow, casting="unsafe")


def _code(values: Floats, code: Blocks, scales: Floats, packed: Bytes) -> None:
    """Code a slice: values [blocks, size] into scales [blocks] and packed numbers [blocks, bytes]."""
    scratch = np.abs(values)
    scratch.max(axis=1, out=scales)
    np.divide(scales, np.float32(code.levels), out=scales)
    if code.bits == 2:
        _code_signs(values, scratch, scales, packed)
        return
    with np.errstate(invalid="ignore"):  # no numbers become some number times a scale that is none
        np.divide(values, np.maximum(scales, SMALLEST)[:, None], out=scratch)
        np.rint(scratch, out=scratch)
        if code.bits == 8:
            np.copyto(packed.view(np.int8), scratch, casting="unsafe")
            return
        shifted = scratch.astype(np.int8)
    shifted += NIBBLE_ZERO
    pairs = shifted.view(np.uint8)
    np.left_shift(pairs[:, 1::2], 4, out=packed)
    packed |= pairs[:, 0::2]


def _code_signs(values: Floats, sizes: Floats, scales: Floats, packed: Bytes) -> None:
    """Code a slice in 2 bits: comparisons with a scale, which is rounded up, so that none is beyond two of it."""
    bits = scales.view(np.uint32)
    nan = np.isnan(scales)
    bits += 0xFFFF
    bits &= 0xFFFF0000
    bits[nan] = NOT_A_NUMBER << 16
    found = np.greater_equal(values, 0.0).view(np.uint8)
    found <<= 1
    found |= np.greater_equal(sizes, scales[:, None]).view(np.uint8)
    four = found.view("<u4")  # a byte of each number, the first one lowest
    four |= four >> 6
    four |= four >> 12
    np.copyto(packed, four, casting="unsafe")


def _from_bf16(coded: NDArray[np.uint16], values: Floats) -> None:
    np.left_shift(coded, 16, out=values.view(np.uint32), dtype=np.uint32, casting="unsafe")


def _from_blocks(coded: Bytes, code: Blocks, values: Floats) -> None:
    scales, packed = code.parts(coded, values.size)
    for part in slices(values.size, SLICE):
        first, last = part.start // code.size, -(-part.stop // code.size)
        _blocks_to(scales[first:last], packed[first:last], code, values[part])


def _blocks_to(scales: Floats, packed: Bytes, code: Blocks, values: Floats) -> None:
    """Decode blocks, of which the last one may hold more numbers than there are values."""
    whole = values.size // code.size
    _decode(scales[:whole], packed[:whole], code, values[: whole * code.size].reshape(whole, code.size))
    if whole < len(scales):
        last = np.empty((1, code.size), np.float32)
        _decode(scales[whole:], packed[whole:], code, last)
        values[whole * code.size :] = last[0, : values.size - whole * code.size]


def _decode(scales: Floats, packed: Bytes, code: Blocks, out: Floats) -> None:
    if code.bits == 2:
        np.take(FOURS, packed, axis=0, out=out.reshape(*packed.shape, 4), mode="clip")
        with np.errstate(invalid="ignore", over="ignore"):
            out *= scales[:, None]
        return
    numbers: NDArray[Any] = packed.view(np.int8)
    if code.bits == 4:
        numbers = np.empty((len(packed), code.size), np.int8)
        pairs = numbers.view(np.uint8)
        np.bitwise_and(packed, 15, out=pairs[:, 0::2])
        np.right_shift(packed, 4, out=pairs[:, 1::2])
        numbers -= NIBBLE_ZERO
    with np.errstate(invalid="ignore", over="ignore"):  # whoever sums them has asked `finite` first
        np.multiply(numbers, scales[:, None], out=out, dtype=np.float32, casting="unsafe")
