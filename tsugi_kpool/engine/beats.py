"""What a replica tells the hub again and again: where its training and its rounds stand."""

from __future__ import annotations

from tsugi_kpool.core.messages import Beat

from .aggregator import Aggregator
from .buffer import ElasticBuffer
from .progress import Progress


def beat_of(
    replica: int,
    incarnation: str,
    progress: Progress,
    buffer: ElasticBuffer,
    aggregator: Aggregator | None,
    equipped: bool,
) -> Beat:
    """The present state; may be called in any thread.

    Args:
        replica: Our number.
        incarnation: Of this process.
        progress: The training thread's.
        buffer: Ours.
        aggregator: None before the engine is started.
        equipped: Whether we can commit rounds.
    """
    return Beat(
        replica=replica,
        incarnation=incarnation,
        # The hub fires when every member is seen in its epoch: one that cannot step yet is not seen there.
        epoch=aggregator.membership.epoch if aggregator and equipped else 0,
        version=aggregator.version if aggregator else 0,
        landed=aggregator.landed if aggregator else 0,
        activity=progress.activity,
        micro_steps=progress.micro_steps,
        samples=progress.samples,
        tokens=progress.tokens,
        busy_s=progress.busy_s,
        trained_s=progress.trained_s(),
        micro_step_s=progress.micro_step_s,
        loss=progress.loss,
        lr=progress.lr,
        pooled=buffer.pooled(),
        sent_bytes=aggregator.sent_bytes if aggregator else 0,
        drained=progress.drained,
        received_bytes=aggregator.received_bytes if aggregator else 0,
        joined=aggregator.round if aggregator else 0,
        ticket=progress.ticket,
        worked=progress.worked,
        wait_s=progress.wait_s,
        hold_s=progress.hold_s,
        stepped_s=progress.stepped_s,
    )
