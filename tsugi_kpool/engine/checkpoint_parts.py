"""A replica's part of a checkpoint: what it writes and when, and how it begins from one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from tsugi_kpool.core.checkpoint import ANCHORS, FileFacts, part_name, scratch_name
from tsugi_kpool.core.hub.checkpoint_orders import MAX_REASON
from tsugi_kpool.core.messages import Saved
from tsugi_kpool.core.replica.ports import Uplink
from tsugi_kpool.errors import LaunchError

from .buffer import ElasticBuffer
from .checkpoint import Writer
from .gradient import GradientUpdate
from .local import LocalUpdate
from .state import ANCHOR, Tensors, moments, part, prefixed, random_state, restore

FLEET = "fleet"
"""Prefix of the moments of the fleet's optimizer (gradient mode), in the anchors' file."""
OWN = "own"
"""Prefix of the moments of a replica's own optimizer (local mode), in its own file."""
RESIDUALS = "owed"
"""Prefix of the residuals of error feedback (gradient mode), in a replica's own file."""


class CheckpointParts:
    """Writes worker 0's part. The aggregator gives it the anchors of a version, the training thread the rest.

    Args:
        root: The run's folder of checkpoints, on this machine.
        replica: Our number.
        buffer: Whose anchors are kept.
        uplink: Hears of every file.
        left_over: Tells what an exchange has left over; None where there is none.
        apart: The hub's machine is another one, and fetches what we write: only the generation's first member writes.
    """

    def __init__(
        self,
        root: Path,
        replica: int,
        buffer: ElasticBuffer,
        uplink: Uplink,
        left_over: Callable[[], Tensors] | None = None,
        apart: bool = False,
    ) -> None:
        self._left_over, self._apart = left_over, apart
        self._replica, self._buffer, self._uplink = replica, buffer, uplink
        self._asked: dict[str, tuple[int, bool]] = {}
        self._writer = Writer(root, self._report)
        self._unwritten: deque[tuple[str, Tensors]] = deque()
        """Checkpoints that still lack the training thread's part, each with our residuals at that version."""

    def commit(self, version: int, first: bool, final: bool = False, writer: int | None = None) -> None:
        """Save the present anchors; the generation's first member writes them, or the writer that the hub names.

        Called where nobody else changes them: in the aggregator's thread or, after the last round, in the training
        thread.
        """
        if writer is not None:
            first = writer == self._replica
        if self._apart and not first:
            return
        name = scratch_name(version, final)
        self._asked[name] = (version, final)
        if first:
            # Copied now: the next round may move the anchors long before the writer gets to them.
            left = self._left_over() if self._left_over is not None else {}
            self._writer.write(name, ANCHORS, anchors(self._buffer) | left)
        self._unwritten.append((name, prefixed(self._buffer.update.residuals(), RESIDUALS)))

    @property
    def wanted(self) -> bool:
        """Whether the training thread's part is wanted."""
        return bool(self._unwritten)

    def give(self, optimizer: torch.optim.Optimizer) -> None:
        """Write the training thread's part: moments and random state. Called at a boundary."""
        tensors = prefixed(moments(optimizer), OWN) | random_state()
        while self._unwritten:
            name, residuals = self._unwritten.popleft()
            self._writer.write(name, part_name(self._replica), tensors | residuals)

    def stop(self, timeout_s: float) -> None:
        """Write what is queued, as far as the time allows."""
        self._writer.stop(timeout_s)

    def _report(self, checkpoint: str, file: str, result: FileFacts | str) -> None:
        version, final = self._asked[checkpoint]
        facts = FileFacts(0, "") if isinstance(result, str) else result
        error = result[:MAX_REASON] if isinstance(result, str) else ""
        self._uplink.report(Saved(0, self._replica, "", version, final, file, facts.bytes, facts.sha256, error))


def anchors(buffer: ElasticBuffer) -> Tensors:
    """Return a copy of the fleet's own state: anchors and, in gradient mode, the moments of its optimizer."""
    update = buffer.update
    fleet = moments(update.optimizer) if isinstance(update, GradientUpdate) else {}
    return {ANCHOR: update.anchor.clone(), **prefixed(fleet, FLEET)}


def begin_from(buffer: ElasticBuffer, tensors: Mapping[str, Tensor]) -> None:
    """Take over a checkpoint's anchors. Called before the first generation is formed.

    Raises:
        LaunchError: they are another pool's.
    """
    update, anchor = buffer.update, tensors.get(ANCHOR)
    if anchor is None or anchor.shape != update.anchor.shape or anchor.dtype != update.anchor.dtype:
        found = "no anchors" if anchor is None else f"anchors {list(anchor.shape)}"
        raise LaunchError(f"the checkpoint has {found}, this model's pool is {list(update.anchor.shape)}")
    with torch.no_grad():
        update.anchor.copy_(anchor)
    if isinstance(update, LocalUpdate) and update.keeper is not None:
        update.keeper.forget()  # of the other owners' residuals nothing is known here
    if isinstance(update, GradientUpdate) and update.optimizer is not None:
        restore(update.optimizer, part(tensors, FLEET))
