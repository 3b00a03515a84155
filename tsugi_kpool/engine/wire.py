"""The codec of rounds for torch's tensors: `tsugi_kpool.codec.coding`, on the same memory."""

from __future__ import annotations

import torch
from torch import Tensor

from tsugi_kpool.codec import coding
from tsugi_kpool.codec.coding import CODES, Blocks, coded_bytes
from tsugi_kpool.core.settings import Payload

__all__ = ["CODES", "Blocks", "coded_bytes", "decode", "encode"]


def encode(values: Tensor, payload: Payload) -> Tensor:
    """Code fp32 `values` of any shape, on the host, as a flat uint8 tensor; of fp32 a view."""
    return torch.from_numpy(coding.encode(values.detach().numpy(), payload))


def decode(coded: Tensor, shape: tuple[int, ...], payload: Payload) -> Tensor:
    """Turn the bytes of `encode` back into fp32 values of `shape`; of fp32 a view."""
    count = int(torch.Size(shape).numel())
    return torch.from_numpy(coding.decode(coded.numpy(), count, payload)).view(shape)
