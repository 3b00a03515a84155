"""From conversations to tokens with a mask: loss is on the assistant's tokens only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tsugi_cli.data import rows
from tsugi_cli.data.packing import PackedSample
from tsugi_kpool.errors import DataError

from .data import Conversation

IGNORED = -100
"""Label of a token that is not trained on."""
Mask = Tensor | dict[str, Tensor] | None
"""For all layers, or for each kind of layers."""


@dataclass(frozen=True)
class Sample:
    """One conversation as token ids, with IGNORED for all that is not the assistant's."""

    ids: list[int]
    labels: list[int]

    @property
    def tokens(self) -> int:
        """Supervised tokens: those that are predicted from the ones before."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class Batch:
    """A micro-batch, padded on the right. All tensors int64 [rows, length]."""

    ids: Tensor
    mask: Mask
    """1 where a row has a token. Of packed rows None, or what the model cannot make of `positions` itself."""
    labels: Tensor
    tokens: int
    """Supervised tokens: what a contribution is weighted with."""
    samples: int
    """Positions of the data order that this is; 0 for what does not count."""
    positions: Tensor | None = None
    """Position ids that restart with every sample of a packed row."""

    @property
    def inputs(self) -> dict[str, Any]:
        """What the model is called with, labels aside."""
        if self.positions is None:
            return {"input_ids": self.ids, "attention_mask": self.mask}
        # transformers looks for packed rows only where there is neither a mask nor a cache.
        given = {"input_ids": self.ids, "position_ids": self.positions, "use_cache": False}
        return given if self.mask is None else {**given, "attention_mask": self.mask}

    @property
    def worked(self) -> int:
        """Tokens computed on, prompts and padding included."""
        return self.ids.numel()

    def weightless(self) -> Batch:
        """The same for a worker that takes part in a micro-step without samples of its own."""
        return replace(self, tokens=0, samples=0)

    def to(self, device: torch.device) -> Batch:
        """A copy on this device."""
        return replace(self, **{name: _moved(value, device) for name, value in vars(self).items()})


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _moved(each, device) for name, each in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def tokenise(conversations: list[Conversation], tokenizer: Any, max_tokens: int) -> list[Sample]:
    """Apply the model's own chat template and mask what the assistant did not say.

    Raises:
        DataError: the template is unusable, or too many samples have nothing left to train on.
    """
    samples = [_sample(conversation, tokenizer, max_tokens) for conversation in conversations]
    empty = sum(not any(label != IGNORED for label in sample.labels[1:]) for sample in samples)
    if empty:
        raise DataError(
            f"{empty} of {len(samples)} samples have no supervised token left within "
            f"data.max_tokens={max_tokens}: raise it, or remove those samples"
        )
    return samples


def labelled(sample: rows.Sample | PackedSample) -> Sample:
    """A prepared sample with a label for every token."""
    labels = [IGNORED] * len(sample.ids)
    for start, stop in sample.spans:
        labels[start:stop] = sample.ids[start:stop]
    return Sample(sample.ids, labels)


def prompt_ids(conversation: Conversation, tokenizer: Any) -> list[int]:
    """Tokens up to where the last assistant message begins."""
    return _encode(tokenizer, _render(tokenizer, conversation[:-1], answer_next=True))


def collate(samples: list[Sample], pad_id: int) -> Batch:
    """Pad to the longest sample."""
    length = max(len(sample.ids) for sample in samples)
    ids = torch.full((len(samples), length), pad_id)
    labels = torch.full((len(samples), length), IGNORED)
    mask = torch.zeros((len(samples), length), dtype=torch.long)
    for row, sample in enumerate(samples):
        size = len(sample.ids)
        ids[row, :size] = torch.tensor(sample.ids)
        labels[row, :size] = torch.tensor(sample.labels)
        mask[row, :size] = 1
    tokens = int((labels[:, 1:] != IGNORED).sum())
    return Batch(ids, mask, labels, tokens, samples=len(samples) if tokens else 0)


def _sample(conversation: Conversation, tokenizer: Any, max_tokens: int) -> Sample:
    """Tokenise turn by turn: an answer's tokens are then the same as those that generation would produce."""
    ids: list[int] = []
    labels: list[int] = []
    rest: list[int] = []  # what the template writes between an answer's stop and the next turn
    done = ""
    for index, message in enumerate(conversation):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, conversation[:index], answer_next=True)
        after = _render(tokenizer, conversation[: index + 1], answer_next=False)
        if not (before.startswith(done) and after.startswith(before)):
            raise DataError("the chat template rewrites earlier turns, so the assistant's part cannot be told apart")
        prompt = rest + _encode(tokenizer, before[len(done) :])
        answer, rest = _until_stop(_encode(tokenizer, after[len(before) :]), tokenizer.eos_token_id)
        ids += prompt + answer
        labels += [IGNORED] * len(prompt) + answer
        done = after
    # The front is cut: the end of a prompt matters most, and the answer is never cut.
    return Sample(ids[-max_tokens:], labels[-max_tokens:])


def _render(tokenizer: Any, messages: Conversation, answer_next: bool) -> str:
    if tokenizer.chat_template is None:
        raise DataError(
            "this model's tokenizer has no chat template; use an instruct model, or set model.chat_template"
        )
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_next)
    return str(text)


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _until_stop(answer: list[int], stop_id: int) -> tuple[list[int], list[int]]:
    """An answer ends with the stop token: what the template writes after it is not the model's to say."""
    if stop_id not in answer:
        return [*answer, stop_id], []
    end = answer.index(stop_id) + 1
    return answer[:end], answer[end:]
