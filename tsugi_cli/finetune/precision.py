"""Number formats: which one the base has on a device, and the scaled loss that float16 needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SHARE = 0.4
"""Of a GPU's memory: a base beyond it leaves too little for the activations of long samples."""


def dtype_of(wanted: str, device: torch.device) -> torch.dtype:
    """The base's number format on this device."""
    if wanted != "auto":
        found = getattr(torch, wanted)
        if not isinstance(found, torch.dtype):
            raise ValueError(wanted)
        return found
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "xpu" else torch.float32


def asks_for_checkpointing(weight_bytes: int, memory_bytes: int | None) -> bool:
    """Whether `model.gradient_checkpointing=auto` means yes: None is a device whose memory is the machine's."""
    return memory_bytes is not None and weight_bytes > SHARE * memory_bytes


def memory_of(device: torch.device) -> int | None:
    """Bytes of the device's own memory."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


class LossScale:
    """Small gradients are nothing in float16, so the loss is scaled up and its gradients down again.

    Other formats need none: then this only goes backward.

    Args:
        parameters: Those whose gradients are scaled down, fp32.
        device: Where they are.
        on: Whether anything is scaled.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], device: torch.device, on: bool) -> None:
        self._scaler = torch.amp.GradScaler(device.type, enabled=on)
        self._holder = torch.optim.SGD(parameters, lr=0.0)  # names the gradients; it never steps
        self._open = False
        """Gradients are there that are still scaled."""
        self.skipped = 0
        """Steps whose scaled gradients were too large to be numbers."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch's share, scaled."""
        self._scaler.scale(loss).backward()
        self._open = True

    def done(self) -> None:
        """The step has its last micro-batch: scale its gradients down.

        Where they were too large there are none, and the next scale is smaller.
        """
        if not self._scaler.is_enabled() or not self._open:
            return
        self._open = False
        self._scaler.unscale_(self._holder)
        before = self._scaler.get_scale()
        self._scaler.update()
        if self._scaler.get_scale() < before:
            self.skipped += 1
            self._holder.zero_grad(set_to_none=True)  # without a gradient AdamW leaves a parameter alone
