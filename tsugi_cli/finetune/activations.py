"""Memory that a micro-batch needs: what the forward pass keeps for the backward one. No torch here.

Counted for decoders with gated MLPs and a LoRA on all linear modules, with attention that keeps no matrix of all
pairs of tokens (sdpa, flash); a LoRA on fewer modules keeps less. What torch really keeps
`tests/engine/test_activations.py` counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "granite"})
"""Kinds of models that have been counted."""
NORMED = frozenset({"qwen3", "olmo2"})
ADAPTED = 7
"""Linear modules of a layer."""
AT_ONCE_BYTES = 1 << 28
"""Of logits that are few enough to be one call: their softmax and what else it makes in fp32."""
ON_CPU = 1.7
"""glibc leaves gaps between what is kept: SmolLM2-135M, 384 to 1,536 tokens at once, takes 1.6 to 1.7 times what is
counted here, and 0.9 times with MALLOC_MMAP_THRESHOLD_=65536, which leaves none."""
FP32, HALF = 4, 2


@dataclass(frozen=True)
class Shape:
    """Of a decoder, in numbers."""

    hidden: int
    query: int
    """Of all heads together, and `key_value` of all that there are of these."""
    key_value: int
    intermediate: int
    layers: int
    vocabulary: int
    normed: bool = False
    """Queries and keys have norms of their own."""


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """The shape in a model's config.json; None where it is of a kind that has not been counted."""
    try:
        if config["model_type"] not in FAMILIES:
            return None
        heads = int(config["num_attention_heads"])
        head = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
        return Shape(
            int(config["hidden_size"]),
            head * heads,
            head * int(config.get("num_key_value_heads") or heads),
            int(config["intermediate_size"]),
            int(config["num_hidden_layers"]),
            int(config["vocab_size"]),
            config["model_type"] in NORMED,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def layer_bytes(shape: Shape, rank: int, width: int) -> int:
    """Bytes that one layer keeps of one token.

    Args:
        shape: The model's.
        rank: Of the LoRA.
        width: Bytes of a number in the base.
    """
    kept = width * (4 * shape.hidden + 2 * shape.query + 2 * shape.key_value + 4 * shape.intermediate)
    # The LoRA is fp32, and so are norms inside: in half precision both keep a copy of what they get.
    copies = 0 if width == FP32 else 20 * shape.hidden + 4 * shape.query + 2 * shape.intermediate
    norms = FP32 * (shape.query + shape.key_value) if shape.normed else 0
    return kept + copies + norms + FP32 * ADAPTED * rank


def token_bytes(shape: Shape, rank: int, width: int, checkpointing: bool) -> int:
    """Bytes that all layers keep of one token; with checkpointing the input of each, and one layer whole."""
    one = layer_bytes(shape, rank, width)
    return shape.layers * shape.hidden * width + one if checkpointing else shape.layers * one


def logit_bytes(shape: Shape, supervised: float, width: int) -> int:
    """Bytes of the logits of so many tokens, with their gradient; few of them are made in fp32 as well."""
    numbers = supervised * shape.vocabulary
    return round(2 * width * numbers + min(2 * FP32 * numbers, AT_ONCE_BYTES))
