"""What an evaluation says, from the sums of its shares."""

from __future__ import annotations

import math
from collections.abc import Mapping

MOST_LOSS = 700.0
"""Beyond it a perplexity is no float."""


METRIC = "metric."
"""How the names begin that `evaluate.metric` gives."""
NOT_SCORED = frozenset({"loss_sum", "loss_tokens", "right_tokens", "answered", "margin_sum", "right_pairs"})
"""Sums that `per_token` reads, and the number of answers; all others are counts of a scorer."""


def is_scored(name: str) -> bool:
    """Whether a sum counts answers, so that it is a share of those that were given."""
    return name not in NOT_SCORED and not name.startswith(METRIC)


def besides(sums: Mapping[str, float]) -> dict[str, float]:
    """Return what an evaluation says that a curve is drawn of, beside the loss: a user's metrics, or the margin."""
    found = per_token(sums) if sums.get("loss_tokens") else {}
    return {name: value for name, value in found.items() if name.startswith(METRIC) or name in ("margin", "accuracy")}


def counted(sums: Mapping[str, float]) -> dict[str, int]:
    """Return what the sums of an evaluation are over, by its unit: supervised tokens, or preference pairs."""
    return {"pairs" if "right_pairs" in sums else "tokens": int(sums["loss_tokens"])}


def per_token(sums: Mapping[str, float]) -> dict[str, float]:
    """Return what the sums of an evaluation say of one supervised token, or of one pair; all weigh the same."""
    loss, tokens = sums["loss_sum"] / sums["loss_tokens"], sums["loss_tokens"]
    found = {"loss": loss}
    if "right_pairs" in sums:
        return {**found, "margin": sums.get("margin_sum", 0.0) / tokens, "accuracy": sums["right_pairs"] / tokens}
    if loss < MOST_LOSS:
        found["perplexity"] = math.exp(loss)
    if "right_tokens" in sums:
        found["token_accuracy"] = sums["right_tokens"] / tokens
    return found | {name: value / tokens for name, value in sums.items() if name.startswith(METRIC)}
