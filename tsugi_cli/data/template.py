"""A model's chat template: conversations as text, and where in that text each answer stands.

What a template does is found out by rendering, never by searching for an answer's words in a text. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jinja2

from .rows import Message, Row, RowError
from .turns import Around, Kind, kind_of, places_of

MARKS = "".join(chr(code) for code in range(0xE0F0, 0xE0FF))
"""Characters for private use: no text of a language has them."""
Tools = Sequence[Mapping[str, Any]] | None
FEW = 5
"""Answers of a conversation that are each rendered by themselves."""
PROBE = "Zq7Probe"
"""Put into a conversation of our own to see what a template makes of it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An assistant's message in a rendered text. Positions are of characters."""

    message: int
    start: int
    """Where the model begins to write: the end of what inference would give it."""
    stop: int
    """Behind the template's own end of the turn."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """One text, and the answers in it that a model can be trained on."""

    text: str
    answers: tuple[Answer, ...]
    mark: str = ""
    """A character that stands in every special token's text which the user wrote, so that it stays text."""
    ended: bool = True
    """The template writes a special token at the end of its last answer."""


@dataclass
class Template:
    """A tokenizer's chat template.

    Args:
        tokenizer: Anything of transformers with `apply_chat_template`.
    """

    tokenizer: Any
    _shown: dict[str, bool] = field(default_factory=dict)

    @property
    def exists(self) -> bool:
        """Whether the tokenizer has one."""
        return self.tokenizer.chat_template is not None

    def render(self, row: Row) -> list[Rendering]:
        """The row's conversation: one text where the template lets earlier turns stand, else one for each answer.

        Raises:
            RowError: the template refuses the row, or would drop a part of it without a word.
        """
        messages, tools, mark = _marked(row.messages, row.tools, self.special_texts)
        self._check_shown(row)
        turns = [at for at, message in enumerate(messages) if message["role"] == "assistant" and at > 0]
        if not turns:
            return [Rendering(self.text(messages, tools), (), mark)]
        if len(turns) > FEW and (found := self._along(messages, turns, tools)):
            return [replace(found, mark=mark)]
        texts = [self._turn(messages, at, tools) for at in turns]
        last = texts[-1]
        whole = last.text if turns[-1] == len(messages) - 1 else self.text(messages, tools)
        if all(_stands_in(each, whole) for each in texts):
            return [Rendering(whole, tuple(each.answers[0] for each in texts), mark, last.ended)]
        return [replace(each, mark=mark) for each in texts]

    def prompt(self, row: Row) -> tuple[str, str]:
        """What inference would give to the model before the last message, an answer; and the mark in it.

        Raises:
            RowError: the template refuses the row.
        """
        messages, tools, mark = _marked(row.messages, row.tools, self.special_texts)
        rendering = self._turn(messages, len(messages) - 1, tools)
        return rendering.text[: rendering.answers[0].start], mark

    def text(self, messages: Sequence[Message], tools: Tools, answer_next: bool = False, **words: Any) -> str:
        """The template's own words.

        Raises:
            RowError: it refuses these messages.
        """
        try:
            rendered = self.tokenizer.apply_chat_template(
                list(messages), tools=tools, tokenize=False, add_generation_prompt=answer_next, **words
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            said = _one_line(error)
            raise RowError(f"the model's chat template refuses it: {said}{_way_out(messages, said)}") from error
        return str(rendered)

    @cached_property
    def special_texts(self) -> tuple[str, ...]:
        """Texts that the tokenizer turns into special tokens, the longest first."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        texts = {str(token) for token in added if token.special} | set(self.tokenizer.all_special_tokens)
        return tuple(sorted((text for text in texts if len(text) > 1), key=len, reverse=True))

    def _along(self, messages: Sequence[Message], turns: Sequence[int], tools: Tools) -> Rendering | None:
        """The whole of a long conversation, in time that grows with its length.

        One answer of each kind is rendered by itself, and so are the last and the 1st, 2nd, 4th, 8th, ...: each must
        stand in the whole, and where the others of its kind say that it does.

        Returns:
            None when the template rewrites earlier turns, or the answers of a kind differ.
        """
        whole = self.text(messages, tools)
        places = places_of(messages, whole, lambda marked: self.text(marked, tools))
        if places is None:
            return None
        known: dict[Kind, Around] = {}
        answers, ended = [], True
        for count, at in enumerate(turns, 1):
            kind = kind_of(messages, at)
            span = places.answer(at, known[kind]) if kind in known else None
            if span is None or count & (count - 1) == 0 or at == turns[-1]:
                turn = self._turn(messages, at, tools)
                exact, ended = (turn.answers[0].start, turn.answers[0].stop), turn.ended
                if not _stands_in(turn, whole) or span not in (None, exact):
                    return None
                if around := places.around(at, exact, self.special_texts):
                    known[kind] = around
                span = exact
            answers.append(Answer(at, *span))
        return Rendering(whole, tuple(answers), ended=ended)

    def _turn(self, messages: Sequence[Message], at: int, tools: Tools) -> Rendering:
        """The conversation up to and with one answer, as inference would have had it."""
        after = self.text(messages[: at + 1], tools)
        start = self._start(messages, at, tools, after)
        stop, ended = self._stop(after)
        return Rendering(after, (Answer(at, start, max(start, stop)),), ended=ended)

    def _start(self, messages: Sequence[Message], at: int, tools: Tools, after: str) -> int:
        """Behind the longest prompt that inference could give, and that the rendering begins with.

        A template with a thinking mode writes an empty thought where there is none: it belongs to the prompt then,
        as inference without thinking has it. A prompt that the rendering does not repeat in full (DeepSeek R1 opens a
        thought) counts as far as the two agree.
        """
        before = messages[:at]
        prompts = [self.text(before, tools, answer_next=True)]
        if self._thinks and not messages[at].get("reasoning_content"):
            prompts.append(self.text(before, tools, answer_next=True, enable_thinking=False))
        whole = [len(prompt) for prompt in prompts if after.startswith(prompt)]
        return max(whole) if whole else max(_common(prompt, after) for prompt in prompts)

    def _stop(self, after: str) -> tuple[int, bool]:
        """Behind the end of the turn: what the template writes after it is not the model's to say."""
        tail, text = self._usual_tail, after.rstrip()
        end = _first_special(tail, self.special_texts) if after.endswith(tail) else 0
        if end:
            return len(after) - len(tail) + end, True
        if text.endswith(self.special_texts):
            return len(text), True
        return len(after), False  # no token ends this template's turns: what it writes there is the model's to write

    @cached_property
    def _thinks(self) -> bool:
        return "enable_thinking" in str(self.tokenizer.chat_template)

    @cached_property
    def _usual_tail(self) -> str:
        """What the template writes after an answer's text."""
        talk = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
        try:
            return self.text(talk, None).rpartition(PROBE)[2]
        except RowError:
            return ""  # it wants more than a question and an answer: a row's own end is taken as it is

    def _check_shown(self, row: Row) -> None:
        """Nothing that a user wrote is dropped by a template in silence.

        Raises:
            RowError: it would be.
        """
        parts = {"tools": bool(row.tools)}
        for name in ("tool_calls", "reasoning_content"):
            parts[name] = any(message.get(name) for message in row.messages)
        for name in (name for name, there in parts.items() if there):
            if not self._shows(name):
                raise RowError(
                    f'"{name}": the model\'s chat template shows none of it; take a model whose template does, '
                    f"model.chat_template=chatml_tools (ChatML with tools), or leave it out with data.ignore=[{name}]"
                )

    def _shows(self, name: str) -> bool:
        if name not in self._shown:
            self._shown[name] = self._probe(name)
        return self._shown[name]

    def _probe(self, name: str) -> bool:
        user: Message = {"role": "user", "content": "a"}
        answer: Message = {"role": "assistant", "content": "b"}
        call = {"type": "function", "id": "call00000", "function": {"name": PROBE, "arguments": {"a": PROBE}}}
        parameters = {"type": "object", "properties": {"a": {"type": "string", "description": PROBE}}}
        schema = {"type": "function", "function": {"name": PROBE, "description": PROBE, "parameters": parameters}}
        added: Message = {"tool_calls": [call]} if name == "tool_calls" else {name: PROBE}
        tools = [schema] if name == "tools" else None
        try:
            return PROBE in self.text([user, answer if tools else answer | added], tools)
        except RowError:
            return True  # the row itself will say what is wrong


def _stands_in(turn: Rendering, whole: str) -> bool:
    """Whether the conversation's text has this turn as it was when its answer was given."""
    return whole.startswith(turn.text[: turn.answers[0].stop])


def _first_special(tail: str, specials: Sequence[str]) -> int:
    """Where the first special token in a tail ends; 0 when there is none."""
    found = [(tail.find(text), -len(text)) for text in specials if text in tail]
    if not found:
        return 0
    at, length = min(found)
    return at - length


def _common(one: str, other: str) -> int:
    """Characters that two texts begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if other.startswith(one[:middle]) else (low, middle - 1)
    return low


def _marked(messages: Sequence[Message], tools: Tools, specials: Sequence[str]) -> tuple[list[Message], Tools, str]:
    """The conversation with a mark inside every special token's text, and that mark ("" where there is none to mark).

    Without it a user's text about `<|im_end|>` would end the turn.

    Raises:
        RowError: every mark is in use.
    """
    text = json.dumps([messages, tools], ensure_ascii=False)
    written = [special for special in specials if json.dumps(special, ensure_ascii=False)[1:-1] in text]
    if not written:
        return list(messages), tools, ""
    mark = next((each for each in MARKS if each not in text), None)
    if mark is None:
        raise RowError(f"it quotes the special token {written[0]!r} beside all of {MARKS!r}: no mark is left to tell")
    return [_in_all(each, written, mark) for each in messages], _in_all(tools, written, mark), mark


def _in_all(value: Any, written: Sequence[str], mark: str) -> Any:
    if isinstance(value, str):
        for special in written:
            value = value.replace(special, special[0] + mark + special[1:])
        return value
    if isinstance(value, list | tuple):
        return [_in_all(each, written, mark) for each in value]
    if isinstance(value, Mapping):
        return {key: _in_all(each, written, mark) for key, each in value.items()}
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _way_out(messages: Sequence[Message], said: str) -> str:
    if messages and messages[0]["role"] == "system" and ("system" in said.lower() or "alternate" in said):
        return "; data.fold_system=true puts the system turn into the user's"
    return ""
