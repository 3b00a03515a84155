"""What an evaluation says, from the sums of its shares."""

from __future__ import annotations

import math
from collections.abc import Mapping

MOST_LOSS = 700.0
"""Beyond it a perplexity is no float."""


def per_token(sums: Mapping[str, float]) -> dict[str, float]:
    """Return what the sums of an evaluation say of one supervised token, all of which weigh the same."""
    loss, tokens = sums["loss_sum"] / sums["loss_tokens"], sums["loss_tokens"]
    found = {"loss": loss}
    if loss < MOST_LOSS:
        found["perplexity"] = math.exp(loss)
    if "right_tokens" in sums:
        found["token_accuracy"] = sums["right_tokens"] / tokens
    return found
