"""From a row to what a model is trained on: token ids of the whole text, encoded once, and which of them it writes.

Positions come from the rendering (`template`) and from the tokenizer's own character offsets (`spans`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tsugi_kpool.errors import DataError

from .rows import Message, Row, RowError, Sample, Span
from .spans import Encoder, token_spans
from .template import Rendering, Template
from .truncate import Truncate, pieces, truncated

TrainOn = Literal["all", "last", "marked"]
STRADDLING = "tokens across the edge of an answer"


@dataclass(frozen=True)
class RenderSettings:
    """What a user has set.

    Attributes:
        max_tokens: No sample is longer.
        train_on: Which answers: all, each row's last, or only those that the user has marked.
        truncate: What becomes of a longer one.
        fold_system: A system turn goes into the user's.
        vocabulary: Rows of the model's embedding; 0: not known.
    """

    max_tokens: int
    train_on: TrainOn = "all"
    truncate: Truncate = "end"
    fold_system: bool = False
    vocabulary: int = 0


@dataclass
class Rendered:
    """A row's samples, and what was counted on the way."""

    samples: list[Sample] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row's last answer as a question to a model."""

    ids: list[int]
    expected: str


class Renderer:
    """Makes samples of rows, for one tokenizer.

    Raises:
        DataError: the tokenizer has no token that could end a sample.
    """

    def __init__(self, tokenizer: Any, settings: RenderSettings) -> None:
        self._tokenizer, self._settings = tokenizer, settings
        self._template, self._encoder = Template(tokenizer), Encoder(tokenizer)
        self.notes: list[str] = []
        self._end = self._ending()

    def samples(self, row: Row) -> Rendered:
        """What this row trains.

        Raises:
            RowError: nothing in it can be trained on, or a part of it would be lost; says what and why.
        """
        rendered = Rendered()
        if row.text is not None:
            self._text(row.text, rendered)
        elif row.plain and not self._template.exists:
            self._pair(row, rendered)
        else:
            self._conversation(row, rendered)
        return rendered

    def prompt(self, row: Row) -> Prompt | None:
        """The row's last answer as a question; None where the row ends with none.

        Raises:
            RowError: the template refuses the row.
        """
        if row.text is not None or not row.messages or row.messages[-1]["role"] != "assistant":
            return None
        row = self._folded(row)
        if row.plain and not self._template.exists:
            asked, _ = _pair(row)
            ids = [*self._encoder.opening, *self._encoder.encode(asked)[0]]
        else:
            ids, _ = self._encoder.encode(*self._template.prompt(row))
        return Prompt(ids, str(row.messages[-1].get("content") or ""))

    def _text(self, text: str, rendered: Rendered) -> None:
        """Continued pretraining: all of it, in pieces that a sample holds, with the end once at its end."""
        ids = self._encoder.encode(text)[0]
        if not ids:
            raise RowError("the text is empty")
        ids = [*self._encoder.opening, *ids, self._end]
        self._check(ids)
        found = pieces(ids, self._settings.max_tokens)
        rendered.counts["pieces of long texts"] += len(found) - 1
        rendered.samples += found

    def _pair(self, row: Row, rendered: Rendered) -> None:
        """A base model's prompt and completion, put together as they are."""
        prompt, completion = _pair(row)
        text = prompt + completion
        self._add(Rendering(text, (), ended=False), [(len(prompt), len(text))], rendered, self._encoder.opening)

    def _conversation(self, row: Row, rendered: Rendered) -> None:
        if not self._template.exists:
            raise RowError(
                "this model's tokenizer has no chat template; take an instruct model, or set model.chat_template"
            )
        row = self._folded(row)
        wanted = self._wanted(row)
        for rendering in self._template.render(row):
            spans = [(each.start, each.stop) for each in rendering.answers if each.message in wanted]
            if spans:
                self._add(rendering, spans, rendered)
        if not rendered.samples and not rendered.counts:
            raise RowError(f"nothing in it is trained on{self._why(row)}")

    def _why(self, row: Row) -> str:
        if not any(message["role"] == "assistant" for message in row.messages[1:]):
            return ": it has no answer of an assistant"
        if self._settings.train_on == "marked":
            return ': data.train_on=marked, and no answer is marked with "train": true'
        return ": every answer is marked not to be"

    def _wanted(self, row: Row) -> set[int]:
        """Messages that are trained on."""
        marks = row.trained or (None,) * len(row.messages)
        for at, (message, mark) in enumerate(zip(row.messages, marks, strict=True)):
            if mark and (at == 0 or message["role"] != "assistant"):
                raise RowError(
                    f"message {at + 1} ({message['role']}) is marked to be trained on, but only an assistant's "
                    "answer that follows another turn can be: take the mark away"
                )
        answers = [at for at, message in enumerate(row.messages) if message["role"] == "assistant" and at > 0]
        default = {"all": set(answers), "last": set(answers[-1:]), "marked": set()}[self._settings.train_on]
        return {at for at in answers if (at in default if marks[at] is None else marks[at])}

    def _add(
        self, rendering: Rendering, spans: Sequence[Span], rendered: Rendered, opening: Sequence[int] = ()
    ) -> None:
        """Encode the whole text once; its answers' characters say which tokens are trained."""
        ids, offsets = self._encoder.encode(rendering.text, rendering.mark)
        ids, offsets = [*opening, *ids], [*[(0, 0)] * len(opening), *offsets]
        found, across = token_spans(offsets, spans)
        if not rendering.ended and found and found[-1][1] == len(ids):
            ids = [*ids, self._end]
            found[-1] = (found[-1][0], len(ids))
        self._check(ids)
        if across:
            rendered.counts[STRADDLING] += across
        sample = Sample(ids, tuple(found))
        kept, what = truncated(sample, self._settings.max_tokens, self._settings.truncate)
        if what:
            rendered.counts[what] += 1
        if kept is not None:
            rendered.samples.append(kept)

    def _check(self, ids: Sequence[int]) -> None:
        size = self._settings.vocabulary
        if size and max(ids) >= size:
            token = self._tokenizer.convert_ids_to_tokens([max(ids)])[0]
            raise RowError(
                f"the token {token!r} has the id {max(ids)}, but the model's embedding has {size} rows: this "
                "tokenizer is another model's"
            )

    def _folded(self, row: Row) -> Row:
        """With the system turn at the head of the user's, where that was asked for."""
        messages = row.messages
        fold = self._settings.fold_system and len(messages) > 1 and messages[0]["role"] in ("system", "developer")
        if not fold or messages[1]["role"] != "user":
            return row
        text = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        first: Message = {**messages[1], "content": text}
        return replace(row, messages=(first, *messages[2:]), trained=row.trained[1:])

    def _ending(self) -> int:
        """The token that ends a sample where the template writes none."""
        tokenizer = self._tokenizer
        for name in ("eos_token", "sep_token", "pad_token"):
            found = getattr(tokenizer, f"{name}_id", None)
            if found is not None:
                if name != "eos_token":
                    self.notes.append(
                        f"the tokenizer has no eos token: {name} ({getattr(tokenizer, name)}) ends a text"
                    )
                return int(found)
        raise DataError("this model's tokenizer has neither an eos nor a pad token: nothing could end a text")


def _pair(row: Row) -> tuple[str, str]:
    """Prompt and completion of a plain row.

    Raises:
        RowError: it has turns that only a template could put together.
    """
    if [message["role"] for message in row.messages] != ["user", "assistant"]:
        raise RowError(
            f"it has a {row.messages[0]['role']} turn beside prompt and completion, and this model's tokenizer has "
            "no chat template to put them together: write it into the prompt, or set model.chat_template"
        )
    prompt, completion = (str(message["content"]) for message in row.messages)
    return prompt, completion
