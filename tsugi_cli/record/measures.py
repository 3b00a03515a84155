"""What an evaluation says, from the sums of its shares."""

from __future__ import annotations

import math
from collections.abc import Mapping

MOST_LOSS = 700.0
"""Beyond it a perplexity is no float."""


NOT_SCORED = frozenset({"loss_sum", "loss_tokens", "right_tokens", "answered", "margin_sum", "right_pairs"})
"""Sums that `per_token` reads, and the number of answers; all others are counts of a scorer."""


def per_token(sums: Mapping[str, float]) -> dict[str, float]:
    """Return what the sums of an evaluation say of one supervised token, or of one pair; all weigh the same."""
    loss, tokens = sums["loss_sum"] / sums["loss_tokens"], sums["loss_tokens"]
    found = {"loss": loss}
    if "right_pairs" in sums:
        return {**found, "margin": sums["margin_sum"] / tokens, "accuracy": sums["right_pairs"] / tokens}
    if loss < MOST_LOSS:
        found["perplexity"] = math.exp(loss)
    if "right_tokens" in sums:
        found["token_accuracy"] = sums["right_tokens"] / tokens
    return found
