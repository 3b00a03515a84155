"""What a forward pass weighs: the supervised tokens of a language model, the samples of any other one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from torch import Size, Tensor, nn

IGNORED_LABEL = -100
"""A label that carries no loss, as in transformers."""
BESIDE = ("labels", "shift_labels", "attention_mask", "position_ids", "token_type_ids")
"""Arguments that go with a batch and are not the batch."""
UNSHIFTED = ("MaskedLM", "TokenClassification")
"""In the names of models whose n-th label belongs to the n-th token; a causal one predicts the next token."""


@dataclass(frozen=True)
class Weight:
    """Of one forward pass. Sums stay on their device until they are asked for."""

    tokens: Tensor | int
    """Supervised ones; samples, where labels are of whole samples or the model reads no tokens."""
    samples: int
    worked: int
    """Tokens computed on, prompts and padding included."""


class Weigher:
    """Weighs the calls of one model.

    Args:
        model: A PEFT model.
    """

    def __init__(self, model: nn.Module) -> None:
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        self._names = _positional(model) or _positional(base)
        encoder_decoder = bool(getattr(getattr(base, "config", None), "is_encoder_decoder", False))
        self._shifted = not encoder_decoder and not any(each in type(base).__name__ for each in UNSHIFTED)

    def weigh(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Weight:
        """What a call with these arguments weighs; 0 only where there is no tensor, or no label counts."""
        named = dict(zip(self._names, args, strict=False)) | dict(kwargs)
        named |= {f"#{number}": each for number, each in enumerate(args[len(self._names) :])}
        for each in args:  # model(batch) with a dict, or one of transformers' encodings
            named |= dict(each) if isinstance(each, Mapping) else {}
        batch = _batch(named)
        if batch is None:
            return Weight(0, 0, 0)
        places, shifted, labels = _places(named, batch), self._shifted, named.get("labels")
        if isinstance(named.get("shift_labels"), Tensor):  # the loss takes these, where a collator has made them
            shifted, labels = False, named["shift_labels"]
        samples = _rows(batch, places)
        worked = places.numel() if places is not None else samples
        if isinstance(labels, Tensor):
            return Weight(_labelled(labels, places, shifted), samples, worked)
        mask = named.get("attention_mask")
        attended = mask.sum() if isinstance(mask, Tensor) and mask.shape == places else worked
        return Weight(attended, samples, worked)


def _positional(module: nn.Module) -> list[str]:
    """The names of what `forward` takes in order, up to its *args."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [each.name for each in inspect.signature(module.forward).parameters.values() if each.kind in kinds]


def _batch(named: Mapping[str, Any]) -> Tensor | None:
    """The tensor with one row for each sample: the model's usual input, or the first that is not beside one."""
    usual = [named.get(name) for name in ("input_ids", "inputs_embeds")]
    rest = [each for name, value in named.items() if name not in BESIDE for each in tensors_in(value)]
    beside = [each for name in BESIDE for each in tensors_in(named.get(name))]
    return next((each for each in (*usual, *rest, *beside) if isinstance(each, Tensor)), None)


def _places(named: Mapping[str, Any], batch: Tensor) -> Size | None:
    """Where the batch's tokens stand, [B, T] or [T]; None when it is not made of tokens."""
    shape: Size = batch.shape
    if batch is named.get("inputs_embeds"):
        return Size(shape[:-1])
    if batch.is_floating_point():
        return Size(shape[:2]) if batch.dim() == 3 else None  # [B, T, features]
    return shape if batch.dim() in (1, 2) else None


def _rows(batch: Tensor, places: Size | None) -> int:
    if batch.dim() == 0 or (places is not None and len(places) == 1):
        return 1
    return batch.shape[0]


def _labelled(labels: Tensor, places: Size | None, shifted: bool) -> Tensor | int:
    """Labels that count: of tokens each of its own, of samples one for each row."""
    if labels.dim() == 0:
        return 1
    whole = not labels.is_floating_point() and not labels.is_complex()
    if whole and places is not None and labels.shape[-1] > 1 and (labels.dim() > 1 or labels.shape == places):
        return (labels[..., 1:] if shifted else labels).ne(IGNORED_LABEL).sum()
    if whole:
        return labels.reshape(labels.shape[0], -1).ne(IGNORED_LABEL).any(1).sum()
    return labels.shape[0]


def tensors_in(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """Every tensor in a value, in order: a tensor, or a mapping, a sequence or an object of such."""
    if isinstance(value, Tensor):
        yield value
    elif depth:
        inside: Any = ()
        if isinstance(value, Mapping):
            inside = value.values()
        elif isinstance(value, list | tuple):
            inside = value
        elif hasattr(value, "__dict__") and not isinstance(value, type | nn.Module):
            inside = vars(value).values()
        for each in inside:
            yield from tensors_in(each, depth - 1)
