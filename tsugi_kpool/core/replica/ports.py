"""The interface between engine and sideband: what the engine needs of whoever carries its messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tsugi_kpool.core.messages import (
    Broken,
    Checked,
    Compared,
    Discarded,
    Evaluated,
    Lease,
    Message,
    Reduced,
    Saved,
    Unreached,
)

Reported = Reduced | Checked | Compared | Broken | Unreached | Discarded | Evaluated | Saved
"""What the engine reports."""


class Uplink(Protocol):
    """A replica's way to the hub. All methods may be called from any thread; none does network I/O itself."""

    def next_order(self, timeout_s: float) -> Message | None:
        """Wait for the next order (Generation, Fire, Commit, Abort, Drain, Refill, Finish).

        None when none came in time.

        Raises:
            SidebandError: the hub has been silent for too long, or has refused this replica.
        """

    def watch(self, heed: Callable[[Message], None]) -> None:
        """Call `heed` with every order as it arrives, in the uplink's own thread: it must be quick and not raise."""

    def report(self, message: Reported) -> None:
        """Send a message that may not be lost; `seq`, `replica` and `incarnation` are filled in."""

    def sign(self, generation: int, round: int, digest: bytes) -> bytes:
        """Sign what we tell the others in a round (`core.rounds.statements`), with the key that the hub knows."""

    def nudge(self) -> None:
        """Send a beat soon, because there is progress."""

    def lease(self) -> Lease:
        """Wait for the next range of data, and return it. A call after an empty range asks the hub again.

        Raises:
            SidebandError: the hub has been silent for too long, or has refused this replica.
        """

    def store_put(self, key: str, value: bytes) -> None:
        """Set a key of the rendezvous store."""

    def store_get(self, key: str, timeout_s: float) -> bytes | None:
        """Return the value of a key of the rendezvous store; None when it does not come in time."""
