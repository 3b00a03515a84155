"""Copies between the device that trains and the host, for which the training thread never waits.

On CUDA a snapshot runs on a side stream into pinned memory: the side stream waits for the newest change of the
parameters, the next change waits for the copy (both on the device), and only the thread that wants the values waits
for them on the host. On the CPU all is done at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class HostCopy(Protocol):
    """Values that are being copied to the host."""

    def wait(self) -> Tensor:
        """Return the values once they are there."""


class Transfers(Protocol):
    """Orders copies and changes on the device. All calls but `HostCopy.wait` are made under the buffer's lock."""

    def before_change(self) -> None:
        """Make all work that the calling thread queues from now on wait for the copies under way: it changes
        values."""

    def changed(self) -> None:
        """Make later copies wait for all work that the calling thread has queued so far: it has changed values."""

    def to_host(self, make: Callable[[], Tensor]) -> HostCopy:
        """Make values on the device and copy them to the host."""

    def to_device(self, values: Tensor) -> Tensor:
        """Return host values on the device, ready for a change."""

    def settle(self) -> None:
        """Wait until the calling thread's changes are done, so that work on any other stream sees them."""


class Arrived:
    """A copy that is finished."""

    def __init__(self, values: Tensor) -> None:
        self._values = values

    def wait(self) -> Tensor:
        return self._values


class HostTransfers:
    """Training on the CPU: no copy is ever under way."""

    def before_change(self) -> None:
        return None

    def changed(self) -> None:
        return None

    def to_host(self, make: Callable[[], Tensor]) -> HostCopy:
        return Arrived(make())

    def to_device(self, values: Tensor) -> Tensor:
        return values

    def settle(self) -> None:
        return None


class _Pinned:
    def __init__(self, values: Tensor, done: torch.cuda.Event) -> None:
        self._values, self._done = values, done

    def wait(self) -> Tensor:
        self._done.synchronize()
        return self._values


class CudaTransfers:
    """Training on a GPU.

    Args:
        device: The pool's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call, unused-ignore]
        self._changed = torch.cuda.current_stream(device).record_event()
        self._copied = self._side.record_event()

    def before_change(self) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._copied)

    def changed(self) -> None:
        self._changed = torch.cuda.current_stream(self._device).record_event()

    def to_host(self, make: Callable[[], Tensor]) -> HostCopy:
        with torch.cuda.stream(self._side):
            self._side.wait_event(self._changed)
            values = make()
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            self._copied = self._side.record_event()
        return _Pinned(host, self._copied)

    def to_device(self, values: Tensor) -> Tensor:
        # Unpinned memory would make the copy wait for everything that is queued before it.
        return values.pin_memory().to(self._device, non_blocking=True)

    def settle(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()


def transfers_for(device: torch.device) -> Transfers:
    """Return the transfers for this device."""
    return CudaTransfers(device) if device.type == "cuda" else HostTransfers()
