"""What makes samples of rows: a tokenizer, its template, the user's settings, and what the model can take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tsugi_cli.config.spec import Data

from .pairs import paired
from .render import Rendered, Renderer, RenderSettings
from .rows import Row, RowError, Sample
from .tables import Question


@dataclass(frozen=True)
class Limits:
    """What the model can take."""

    vocabulary: int
    """Rows of its embedding."""
    positions: int | None
    """Longest sample; None: no limit is known."""
    names: Callable[[int], str]
    """A token's text."""

    def check(self, sample: Sample) -> None:
        """Whether the model can take it.

        Raises:
            RowError: it has a token that the model has not, or more of them than the model has positions.
        """
        largest = max(sample.ids, default=0)
        if largest >= self.vocabulary:
            raise RowError(
                f"token {largest} ({self.names(largest)!r}) is beyond the model's embedding, which has "
                f"{self.vocabulary} rows: the tokenizer has more tokens than the model"
            )
        if self.positions is not None and len(sample.ids) > self.positions:
            raise RowError(f"{len(sample.ids)} tokens are more than the model's {self.positions} positions")

    def capped(self, max_tokens: int) -> int:
        """`data.max_tokens`, or what the model can take where that is less."""
        return max_tokens if self.positions is None else min(max_tokens, self.positions)

    def notes(self, max_tokens: int) -> list[str]:
        """What a user should know."""
        if self.capped(max_tokens) == max_tokens:
            return []
        return [f"data.max_tokens={max_tokens} is capped at {self.positions}, the positions that the model has"]


class Kitchen:
    """Makes samples of rows.

    Args:
        tokenizer: The model's.
        data: The user's settings.
        limits: The model's.

    Raises:
        DataError: nothing can be made with this tokenizer.
    """

    def __init__(self, tokenizer: Any, data: Data, limits: Limits) -> None:
        self.limits, self.max_tokens = limits, limits.capped(data.max_tokens)
        self.decode: Callable[[Sequence[int]], str] = tokenizer.decode
        self._renderer = Renderer(tokenizer, settings_of(data, self.max_tokens, limits.vocabulary))
        self.notes = [*limits.notes(data.max_tokens), *self._renderer.notes]

    def samples(self, row: Row) -> Rendered:
        """What a row trains; of a preference pair two samples, the chosen one first.

        Raises:
            RowError: nothing in it can be trained on.
        """
        made = self._renderer.samples(row)
        return made if row.rejected is None else paired(made, self._renderer.samples(row.rejected))

    def question(self, row: Row) -> Question | None:
        """Its last answer as a question to a model; None where it has none.

        Raises:
            RowError: the template refuses it.
        """
        prompt = self._renderer.prompt(row)
        if prompt is None:
            return None
        asked = next((each["content"] for each in reversed(row.messages[:-1]) if each.get("content")), "")
        whole = msgspec.json.encode({"messages": row.messages, "tools": row.tools}).decode()
        return Question(prompt.ids, str(asked), prompt.expected, whole)


def settings_of(data: Data, max_tokens: int, vocabulary: int) -> RenderSettings:
    """The user's settings as the renderer takes them."""
    return RenderSettings(
        max_tokens=max_tokens,
        train_on=data.train_on,
        truncate=data.truncate,
        fold_system=data.fold_system,
        vocabulary=vocabulary,
    )
