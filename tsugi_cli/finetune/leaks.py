"""Whether samples that share a row stay apart in a model. Who cannot say so is refused before anything is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tsugi_cli.data.packing import PackedSample
from tsugi_kpool.errors import ConfigError

from .packed import Packer, Way

KEY = "data.packing=true"
ATTENTION = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Kinds of layers whose masks transformers builds from position ids. The others may carry a state along the row."""
SEEN, OTHER, LATER = 12, 7, 9
"""Tokens of the first sample of a row, how far its two versions are apart, and tokens of the second one."""
LEAST, ROUNDINGS = 1e-4, 8.0
"""So much of the largest logit, or so many roundings if that is more, may differ where nothing leaks: kernels, and a
mixture of experts, add up in another order. What leaks changes logits by tenths."""


def refuse_by_config(config: Any) -> None:
    """Refuse models that carry a state from token to token. Reads no weights.

    Args:
        config: Of transformers.

    Raises:
        ConfigError: samples that share a row would see each other.
    """
    kinds = sorted(set(getattr(config.get_text_config(), "layer_types", None) or ()) - ATTENTION)
    if kinds:
        why = f"its layers of the kind {', '.join(kinds)} may carry a state from one sample of a row to the next"
        raise ConfigError([_refusal(config, why)])
    if _is_stateful(config):
        raise ConfigError([_refusal(config, "its layers carry a state from one sample of a row to the next")])


def _is_stateful(config: Any) -> bool:
    """What transformers says of the model's class; of remote code it says nothing here."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    classes = found if isinstance(found, tuple | list) else [found]
    return any(getattr(each, "_is_stateful", False) for each in classes)


def _refusal(config: Any, why: str) -> str:
    kind = getattr(config, "model_type", None) or type(config).__name__
    return f"{KEY}: a model of the type {kind} cannot be trained so: {why}; set data.packing=false"


def packer_for(model: Any, device: torch.device | None = None) -> Packer:
    """Find the way in which this model keeps samples apart, by trial.

    A trial is three forward passes over some twenty tokens. All workers of a replica make it in step.

    Args:
        model: Ready to be trained, on its device.
        device: Of the model's inputs.

    Raises:
        ConfigError: there is none: what stands first in a row changes what the model says of the sample behind it.
    """
    refuse_by_config(model.config)
    flash = "flash" in str(getattr(model.config, "_attn_implementation", None) or "")
    problem = ""
    for way in [Way.FLAT] if flash else [Way.POSITIONS, Way.MASKS]:
        packer = Packer(way, model.config, model.dtype)
        was_training = model.training
        try:
            problem = _leak(model.eval(), packer, device)
        finally:
            model.train(was_training)
        if not problem:
            return packer
    raise ConfigError([_refusal(model.config, problem)])


@torch.no_grad()
def _leak(model: Any, packer: Packer, device: torch.device | None) -> str:
    """What goes wrong in a row of two samples; nothing: "". The second one is looked at behind two different ones."""
    vocabulary = model.config.get_text_config().vocab_size
    later = [(5 * at + 1) % vocabulary for at in range(LATER)]
    firsts = [[(3 * at + shift) % vocabulary for at in range(SEEN)] for shift in (0, OTHER)]
    rows = [PackedSample(first + later, (), (SEEN, LATER), (0, 1)) for first in firsts]
    try:
        behind, elsewhere = (_logits(model, packer, row, device)[SEEN:] for row in rows)
        alone = _logits(model, packer, PackedSample(later, (), (LATER,), (0,)), device)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return f"it does not take a row of several samples ({type(error).__name__}: {error})"
    noise = float(alone.abs().max()) * max(LEAST, ROUNDINGS * torch.finfo(alone.dtype).eps)
    if float((behind - elsewhere).abs().max()) > noise:
        return "a sample of a row changes what it computes for the next one"
    if float((behind - alone).abs().max()) > noise:
        return "it does not begin anew with every sample of a row"
    return ""


def _logits(model: Any, packer: Packer, row: PackedSample, device: torch.device | None) -> Tensor:
    """[tokens, vocabulary]"""
    batch = packer.collate([row], 0)
    found: Tensor = model(**(batch if device is None else batch.to(device)).inputs).logits[0]
    return found
