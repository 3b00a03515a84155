"""The rendezvous of a generation's group: a `Store` whose keys travel over the authenticated sideband.

A TCPStore listens on all interfaces and asks nobody who they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from tsugi_kpool.core.replica.acquaintance import shape
from tsugi_kpool.core.replica.ports import Uplink

from .members_only import CONNECTIONS

SLICE_S = 0.1
"""A wait for a value looks so often whether the hub has ordered another group."""


class SidebandStore(dist.Store):  # type: ignore[name-defined,misc]
    """The rendezvous keys of one group, kept by the hub.

    Gloo uses set, wait and get with one address of about 200 bytes for each rank; nothing else is offered.
    """

    def __init__(
        self, uplink: Uplink, prefix: str, timeout_s: float, overtaken: Callable[[], bool] = lambda: False
    ) -> None:
        super().__init__()
        self._uplink, self._prefix, self._timeout_s = uplink, prefix, timeout_s
        self._overtaken = overtaken
        self.gave_up = False
        """Whether a value did not come in time, or was malformed: then no stranger has kept the group from forming.
        """
        self._shape: tuple[int, int] | None = None
        """Shape of our own address; all members' have the same. None until gloo has set ours, or where it has another
        form."""

    def set(self, key: str, value: str | bytes) -> None:
        data = value.encode() if isinstance(value, str) else bytes(value)
        if not key.startswith(CONNECTIONS):
            self._shape = shape(data)
        self._uplink.store_put(self._prefix + key, data)

    def get(self, key: str) -> bytes:
        value = self._await(key, time.monotonic() + self._timeout_s)
        if value is None:
            raise self._given_up(f"no value for {key} within {self._timeout_s:g} s")
        if self._shape is not None and not key.startswith(CONNECTIONS) and shape(value) != self._shape:
            raise self._given_up(f"what a member has put at {key} is no address of gloo's")
        return value

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        deadline_s = time.monotonic() + (timeout.total_seconds() if timeout else self._timeout_s)
        for key in keys:
            if self._await(key, deadline_s) is None:
                raise self._given_up(f"no value for {key} in time")

    def _await(self, key: str, deadline_s: float) -> bytes | None:
        """Wait in slices, because the hub may order another group meanwhile. Returns None at the deadline."""
        while True:
            if self._overtaken():  # also when the value is there: the others have given this group up
                raise self._given_up("the hub has ordered another group")
            left_s = max(0.0, deadline_s - time.monotonic())
            value = self._uplink.store_get(self._prefix + key, min(left_s, SLICE_S))
            if value is not None or left_s <= SLICE_S:
                return value

    def _given_up(self, reason: str) -> Exception:
        """Return the store's error, which torch passes on, and remember that the store gave up."""
        self.gave_up = True
        return dist.DistStoreError(reason)

    def check(self, keys: list[str]) -> bool:
        return all(self._uplink.store_get(self._prefix + key, 0.0) is not None for key in keys)

    def set_timeout(self, timeout: timedelta) -> None:
        self._timeout_s = timeout.total_seconds()
