"""Looks, while a replica waits for the end, whether there is anything to wait for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from tsugi_kpool.core.messages import FleetStatus
from tsugi_kpool.core.replica.closing import Waiting, moved, picture, why_not
from tsugi_kpool.errors import LaunchError, SidebandError, TrainingError
from tsugi_kpool.sideband.link import Link

LOOK_S = 5.0
"""The hub is asked this often."""
SAY_S = 60.0
"""Who is waited for is logged this often."""

log = logging.getLogger("tsugi_kpool")


class Patience:
    """One wait.

    Args:
        replica: Our number.
        ask: How the fleet is, as the hub says; waits a second at most.
        link: Ours.
        round_timeout_s: A round that takes longer fails.
        timeout_s: The user's own deadline; None has none.
    """

    def __init__(
        self,
        replica: int,
        ask: Callable[[], FleetStatus],
        link: Link,
        round_timeout_s: float,
        timeout_s: float | None,
    ) -> None:
        self._replica, self._ask, self._link = replica, ask, link
        self._round_timeout_s, self._timeout_s = round_timeout_s, timeout_s
        self._began_s = self._moved_s = self._asked_s = self._said_s = time.monotonic()
        self._fleet: FleetStatus | None = None

    def look(self) -> None:
        """Look now and then; to be called often.

        Raises:
            TrainingError: there is nothing to wait for.
        """
        now_s = time.monotonic()
        late = self._timeout_s is not None and now_s - self._began_s > self._timeout_s
        if now_s - self._asked_s < LOOK_S and not late:
            return
        self._asked_s = now_s
        self._ask_again(now_s)
        seen = self._seen(now_s)
        reason = why_not(seen, self._round_timeout_s, self._timeout_s)
        if reason is not None:
            raise TrainingError(reason)
        if now_s - self._said_s >= SAY_S:
            self._said_s = now_s
            log.info("replica %s has ended its loop and waits: %s", self._replica, picture(seen))

    def _ask_again(self, now_s: float) -> None:
        try:
            fleet = self._ask()
        except (SidebandError, LaunchError):
            return  # the link says when the hub has been silent for too long
        if moved(self._fleet, fleet):
            self._moved_s = now_s
        self._fleet = fleet

    def _seen(self, now_s: float) -> Waiting:
        told = self._link.not_taken
        refused = told[0] if told is not None and told[1] > self._began_s else None
        return Waiting(self._replica, now_s - self._began_s, now_s - self._moved_s, self._fleet, refused)
