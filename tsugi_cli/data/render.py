"""From a row to what a model is trained on: token ids of the whole text, encoded once, and which of them it writes.

Positions come from the rendering (`template`) and from the tokenizer's own character offsets. One rule for a token
that lies across an edge: it belongs to where its last character lies. Such tokens are counted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tsugi_kpool.errors import DataError

from .rows import Message, Row, RowError, Sample, Span
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
        self._template = Template(tokenizer)
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
            text = str(row.messages[0]["content"])
        else:
            text = self._template.prompt(row)
        return Prompt(self._encoded(text)[0], str(row.messages[-1].get("content") or ""))

    def _text(self, text: str, rendered: Rendered) -> None:
        """Continued pretraining: all of it, in pieces that a sample holds, with the end once at its end."""
        ids = [*self._encoded(text)[0], self._end]
        if len(ids) < 2:
            raise RowError("the text is empty")
        self._check(ids)
        found = pieces(ids, self._settings.max_tokens)
        rendered.counts["pieces of long texts"] += len(found) - 1
        rendered.samples += found

    def _pair(self, row: Row, rendered: Rendered) -> None:
        """A base model's prompt and completion, put together as they are."""
        prompt, completion = (str(message["content"]) for message in row.messages[-2:])
        self._add(
            Rendering(prompt + completion, (), ended=False), [(len(prompt), len(prompt + completion))], rendered
        )

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
        answers = [at for at, message in enumerate(row.messages) if message["role"] == "assistant" and at > 0]
        default = {"all": set(answers), "last": set(answers[-1:]), "marked": set()}[self._settings.train_on]
        return {at for at in answers if (at in default if marks[at] is None else marks[at])}

    def _add(self, rendering: Rendering, spans: Sequence[Span], rendered: Rendered) -> None:
        """Encode the whole text once; its answers' characters say which tokens are trained."""
        ids, offsets = self._encoded(rendering.text, rendering.mark)
        found, across = _token_spans(offsets, spans)
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

    def _encoded(self, text: str, mark: str = "") -> tuple[list[int], list[Span]]:
        """Ids and [start, stop) of characters of each; those of `mark` are left out.

        Raises:
            RowError: this tokenizer does not say which characters a token stands for.
        """
        if getattr(self._tokenizer, "is_fast", False):
            encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids, offsets = list(encoded["input_ids"]), [(a, b) for a, b in encoded["offset_mapping"]]
        else:
            ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
            offsets = _rebuilt(self._tokenizer, ids, text)
        if not mark:
            return ids, offsets
        kept = [at for at, (start, stop) in enumerate(offsets) if text[start:stop].strip(mark) or start == stop]
        return [ids[at] for at in kept], [offsets[at] for at in kept]

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


def _token_spans(offsets: Sequence[Span], spans: Iterable[Span]) -> tuple[list[Span], int]:
    """Characters as tokens: a token belongs to where its last character lies. And how many lie across an edge."""
    ends = [stop for _, stop in offsets]
    found, across = [], 0
    for start, stop in spans:
        first, last = bisect_right(ends, start), bisect_right(ends, stop)
        if first < last:
            found.append((first, last))
            across += offsets[first][0] < start
        across += last < len(offsets) and offsets[last][0] < stop
    return found, across


def _rebuilt(tokenizer: Any, ids: Sequence[int], text: str) -> list[Span]:
    """Offsets of a tokenizer that tells none: what its tokens decode to, one after the other, must be the text.

    Raises:
        RowError: it is not.
    """
    offsets, at = [], 0
    for token in ids:
        piece = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        start = text.find(piece, at, at + len(piece) + 1) if piece else at
        if start < 0:
            raise RowError(
                f"the tokenizer {type(tokenizer).__name__} does not say which characters a token stands for, and its "
                "tokens do not add up to the text: take one with a tokenizer.json"
            )
        offsets.append((start, start + len(piece)))
        at = start + len(piece)
    return offsets
