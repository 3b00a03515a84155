"""How shipped values are coded: fp32, bf16, or int8 with one scale for every block of 256.

Coding and decoding are plain elementwise arithmetic on the CPU in fp32, in a fixed order, so that every replica
decodes the same bytes to the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tsugi_kpool.core.settings import Payload

BLOCK = 256
"""Values that share a scale: 4 bytes of scale for 256 of codes, 1.6 % more."""
LEVELS = 127.0


def encode(values: Tensor, payload: Payload) -> Tensor:
    """Code fp32 `values` of any shape as a flat uint8 tensor."""
    flat = values.reshape(-1).contiguous()
    if payload is Payload.FP32:
        return flat.view(torch.uint8)
    if payload is Payload.BF16:
        return flat.to(torch.bfloat16).view(torch.uint8)
    blocks = _blocks(flat)
    scales = blocks.abs().amax(dim=1) / LEVELS
    codes = (blocks / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round().to(torch.int8)
    return torch.cat([scales.view(torch.uint8), codes.reshape(-1).view(torch.uint8)])


def decode(coded: Tensor, shape: tuple[int, ...], payload: Payload) -> Tensor:
    """Turn the bytes of `encode` back into fp32 values of `shape`."""
    count = int(torch.Size(shape).numel())
    if payload is Payload.FP32:
        return _aligned(coded).view(torch.float32).reshape(shape)
    if payload is Payload.BF16:
        return _aligned(coded).view(torch.bfloat16).to(torch.float32).reshape(shape)
    blocks = -(-count // BLOCK)
    scales = _aligned(coded[: 4 * blocks]).view(torch.float32)
    codes = coded[4 * blocks :].view(torch.int8).reshape(blocks, BLOCK)
    return (codes.to(torch.float32) * scales[:, None]).reshape(-1)[:count].reshape(shape)


def coded_bytes(count: int, payload: Payload) -> int:
    """Bytes that `encode` makes of `count` values."""
    if payload is Payload.INT8:
        return -(-count // BLOCK) * (BLOCK + 4)
    return count * (4 if payload is Payload.FP32 else 2)


def _blocks(flat: Tensor) -> Tensor:
    """[blocks, BLOCK], padded with zeros."""
    padding = -flat.numel() % BLOCK
    return torch.nn.functional.pad(flat, (0, padding)).view(-1, BLOCK)


def _aligned(coded: Tensor) -> Tensor:
    """A copy that starts on its own storage: a slice at an odd offset cannot be viewed as wider numbers."""
    return coded.clone()
