"""Preference pairs: two answers to one prompt, of which one was preferred. Read from records, and made samples of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .jsontext import parsed
from .messages import Marks, conversation, row_of
from .render import Rendered
from .rows import Message, Row, RowError

PAIR = ("chosen", "rejected")
SAME = "dropped: chosen and rejected are the same within data.max_tokens"
MANY = (
    "this model's template rewrites earlier turns, so that several answers are no single sequence: a pair may have "
    "one answer on each side"
)
Talk = tuple[Message, ...]


def preference(record: Mapping[str, Any]) -> Row:
    """A row whose messages end with the chosen answer, and whose `rejected` ends with the other one.

    Either answer is a text, a message or a list of messages. Lists may begin with the prompt, which then is what both
    have in common.

    Raises:
        RowError: one of them cannot be read, nothing distinguishes them, or nothing comes before them.
    """
    prompt = _prompt(record)
    sides = [_side(record, name) for name in PAIR]
    if prompt and all(side[: len(prompt)] == prompt for side in sides):
        sides = [side[len(prompt) :] for side in sides]
    talks = [_talk([*prompt, *side], name) for side, name in zip(sides, PAIR, strict=True)]
    asked = len(prompt) or _in_common(*talks)
    _compare(talks[0][asked:], talks[1][asked:])
    chosen, rejected = (row_of(talk, _marks(talk, asked), record) for talk in talks)
    texts = all(isinstance(record.get(name), str) for name in ("prompt", *PAIR))
    if texts and not chosen.tools and not record.get("system"):
        chosen, rejected = replace(chosen, plain=True), replace(rejected, plain=True)
    return replace(chosen, rejected=rejected)


def _prompt(record: Mapping[str, Any]) -> list[Any]:
    """The messages before the answers; none where these begin with them."""
    prompt = _listed(record.get("prompt", []))
    if isinstance(prompt, list):
        return prompt
    if not isinstance(prompt, str):
        raise RowError(f'"prompt" must be a text, or a list of messages, found {type(prompt).__name__}')
    repeated = all(_says(_listed(record[name]), prompt) for name in PAIR)
    return [] if repeated else [{"role": "user", "content": prompt}]


def _says(side: Any, prompt: str) -> bool:
    """Whether the prompt is one of the messages before an answer."""
    return isinstance(side, list) and any(isinstance(each, dict) and prompt == each.get("content") for each in side)


def _side(record: Mapping[str, Any], name: str) -> list[Any]:
    """One answer as messages."""
    side = _listed(record[name])
    if isinstance(side, str):
        if "prompt" not in record:
            raise RowError(
                f'"{name}" is a text without a "prompt": where the prompt ends cannot be told; give it, or lists of '
                "messages"
            )
        return [{"role": "assistant", "content": side}]
    if isinstance(side, dict):
        return [side]
    if not isinstance(side, list) or not side:
        raise RowError(f'"{name}" must be a text, a message or a list of messages, found {type(side).__name__}')
    return side


def _listed(value: Any) -> Any:
    """Messages that a table holds as the text of a list."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        found = parsed(value)
        return value if isinstance(found, RowError) else found
    return value


def _talk(messages: list[Any], name: str) -> Talk:
    talk, marks = conversation(messages, f'"{name}"')
    if any(mark is not None for mark in marks):
        raise RowError(
            '"train" or "weight" of a message means nothing in a preference pair, whose answers are compared whole'
        )
    return talk


def _in_common(chosen: Talk, rejected: Talk) -> int:
    """How many messages both begin with."""
    shorter = min(len(chosen), len(rejected))
    same = next((at for at in range(shorter) if chosen[at] != rejected[at]), shorter)
    if same == 0:
        raise RowError('"chosen" and "rejected" begin with different messages: they have no prompt in common')
    return same


def _compare(chosen: Talk, rejected: Talk) -> None:
    """Refuse two answers between which nothing is preferred."""
    if chosen == rejected:
        raise RowError('"chosen" and "rejected" say the same: nothing is preferred')
    for name, answer in zip(PAIR, (chosen, rejected), strict=True):
        if not any(message["role"] == "assistant" for message in answer):
            raise RowError(f'"{name}" has no answer of its own after what both begin with')


def _marks(talk: Talk, asked: int) -> Marks:
    """Answers in a prompt are context."""
    return tuple(False if at < asked and each["role"] == "assistant" else None for at, each in enumerate(talk))


def paired(chosen: Rendered, rejected: Rendered) -> Rendered:
    """Both sides as samples, the chosen one first; none where one of them is dropped.

    Raises:
        RowError: a side is more than one sample.
    """
    counts = Counter({**chosen.counts}) + Counter({**rejected.counts})
    sides = [chosen.samples, rejected.samples]
    if any(len(side) > 1 for side in sides):
        raise RowError(MANY)
    samples = [sample for side in sides for sample in side]
    if len(samples) < len(PAIR):
        return Rendered([], counts)
    if samples[0].ids == samples[1].ids:
        return Rendered([], Counter({SAME: 1}))
    return Rendered(samples, counts)
