"""Figures of all replicas together: goodput, pace and loss, from what each has said of itself. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tsugi_kpool.core.messages import Beat

from .members import LEAST_S, Member


def samples_per_s(beat: Beat | None) -> float:
    """A replica's own pace, waits left out: of its newest step or of all of them, whichever is slower."""
    if beat is None:
        return 0.0
    busy_s = max(beat.busy_s, beat.step_s * beat.steps)
    return max(0, beat.samples) / busy_s if LEAST_S < busy_s < math.inf else 0.0  # what a beat says may be anything


def goodput(beats: Iterable[Beat]) -> float | None:
    """Tokens trained as a share of what the replicas' own rates allow; None before any was.

    A replica's own rate is its tokens per busy second; time in which it waited for data, a round or a control
    message is lost. Injected slowness (``fault.slow``) emulates a slower device and counts as busy.
    """
    tokens, possible = 0.0, 0.0
    for beat in beats:
        if beat.busy_s > 0.0:
            tokens += beat.tokens
            possible += beat.tokens / beat.busy_s * beat.trained_s
    return min(1.0, tokens / possible) if possible > 0.0 else None


def goodput_now(members: Iterable[Member]) -> float | None:
    """As `goodput`, over the newest rate window; None before any member has ended two steps."""
    newest = [member.newest() for member in members]
    possible = sum(each for _, each in newest)
    return min(1.0, sum(tokens for tokens, _ in newest) / possible) if possible > 0.0 else None


def mean_loss(beats: Iterable[Beat]) -> float | None:
    """The replicas' newest smoothed losses, weighted by their tokens; None before any."""
    weighted = [(beat.loss, beat.tokens) for beat in beats if beat.steps]
    total = sum(tokens for _, tokens in weighted)
    return sum(loss * tokens for loss, tokens in weighted) / total if total else None
