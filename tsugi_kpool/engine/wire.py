"""The wire codec: fp32, bf16, or int8 and int4 with one scale for every block of values.

Coding and decoding are plain elementwise arithmetic on the CPU in fp32, in a fixed order, so that every replica
decodes the same bytes to the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tsugi_kpool.core.settings import Payload


@dataclass(frozen=True)
class Blocks:
    """A symmetric block code: `size` values share one fp32 scale, and are integers in [-levels, levels] times it."""

    size: int
    levels: float
    bits: int


CODES = {Payload.INT8: Blocks(256, 127.0, 8), Payload.INT4: Blocks(64, 7.0, 4)}
"""4 bytes of scale for 256 of codes are 1.6 % more. 15 levels need narrower blocks: 4 for 32 are 12.5 % more."""
WIDEST_BYTES = 4
"""Width of the widest numbers that codes are viewed as: fp32."""
NIBBLE_ZERO = 8
"""The nibble that means 0, so that -7 to 7 are 1 to 15."""


def encode(values: Tensor, payload: Payload) -> Tensor:
    """Code fp32 `values` of any shape as a flat uint8 tensor."""
    flat = values.reshape(-1).contiguous()
    if payload is Payload.FP32:
        return flat.view(torch.uint8)
    if payload is Payload.BF16:
        return flat.to(torch.bfloat16).view(torch.uint8)
    code = CODES[payload]
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % code.size)).view(-1, code.size)
    scales = blocks.abs().amax(dim=1) / code.levels
    numbers = (blocks / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round().to(torch.int8).view(-1)
    packed = numbers.view(torch.uint8) if code.bits == 8 else _to_nibbles(numbers)
    return torch.cat([scales.view(torch.uint8), packed])


def decode(coded: Tensor, shape: tuple[int, ...], payload: Payload) -> Tensor:
    """Turn the bytes of `encode` back into fp32 values of `shape`."""
    if payload is Payload.FP32:
        return _aligned(coded).view(torch.float32).reshape(shape)
    if payload is Payload.BF16:
        return _aligned(coded).view(torch.bfloat16).to(torch.float32).reshape(shape)
    count, code = int(torch.Size(shape).numel()), CODES[payload]
    blocks = -(-count // code.size)
    scales, packed = _aligned(coded[: 4 * blocks]).view(torch.float32), coded[4 * blocks :]
    numbers = packed.view(torch.int8) if code.bits == 8 else _from_nibbles(packed)
    values = numbers.view(blocks, code.size).to(torch.float32) * scales[:, None]
    return values.reshape(-1)[:count].reshape(shape)


def coded_bytes(count: int, payload: Payload) -> int:
    """Return the bytes that `encode` makes of `count` values."""
    if payload not in CODES:
        return count * (4 if payload is Payload.FP32 else 2)
    code = CODES[payload]
    return -(-count // code.size) * (code.size * code.bits // 8 + 4)


def _to_nibbles(numbers: Tensor) -> Tensor:
    """Return pairs of int8 in [-7, 7] as one byte each, the first in the lower half."""
    shifted = (numbers + NIBBLE_ZERO).view(torch.uint8)
    return shifted[0::2] | (shifted[1::2] << 4)


def _from_nibbles(packed: Tensor) -> Tensor:
    pairs = torch.stack([packed & 15, packed >> 4], dim=1)
    return pairs.reshape(-1).view(torch.int8) - NIBBLE_ZERO


def _aligned(coded: Tensor) -> Tensor:
    """Return the same bytes so that they can be viewed as wider numbers: a copy, if this is a slice at an odd
    offset."""
    return coded.clone() if coded.storage_offset() % WIDEST_BYTES else coded
