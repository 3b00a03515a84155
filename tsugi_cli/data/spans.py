"""From characters of a text to the tokens that stand for them. No torch here.

One rule for a token that lies across an edge: it belongs to where its last character lies.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .rows import RowError, Span

REPLACEMENT = "\ufffd"
"""What a part of a character's bytes decodes to."""
LONGEST = 8
"""Tokens that one character is spread over, at most."""


class Encoder:
    """Token ids of a text, and which characters each of them stands for.

    Args:
        tokenizer: Of transformers; one that tells no offsets must decode to exactly what it has encoded.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._fast = bool(getattr(tokenizer, "is_fast", False))
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._greedy = {at: token for at, token in added.items() if token.lstrip or token.rstrip}
        self._opening: list[int] | None = None

    @property
    def opening(self) -> list[int]:
        """What the tokenizer itself puts before a text that no template has made, such as bos."""
        if self._opening is None:
            with_own, bare = (
                list(self._tokenizer("a", add_special_tokens=own)["input_ids"]) for own in (True, False)
            )
            places = range(len(with_own) - len(bare) + 1)
            at = next((at for at in places if with_own[at : at + len(bare)] == bare), 0)
            self._opening = with_own[:at]
        return self._opening

    def encode(self, text: str, mark: str = "") -> tuple[list[int], list[Span]]:
        """Ids, and [start, stop) of characters of each; tokens of `mark` are left out.

        Raises:
            RowError: this tokenizer does not say which characters a token stands for.
        """
        if self._fast:
            encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        else:
            ids = list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
            offsets = _rebuilt(self._tokenizer, ids, text, self._greedy)
        if self._greedy:
            offsets = [
                _bare(text, span) if token in self._greedy else span for token, span in zip(ids, offsets, strict=True)
            ]
        if not mark:
            return ids, offsets
        kept = [at for at, (start, stop) in enumerate(offsets) if text[start:stop].strip(mark) or start == stop]
        return [ids[at] for at in kept], [offsets[at] for at in kept]


def token_spans(offsets: Sequence[Span], spans: Iterable[Span]) -> tuple[list[Span], int]:
    """Characters as tokens, and how many tokens lie across an edge."""
    ends = [stop for _, stop in offsets]
    found, across = [], 0
    for start, stop in spans:
        first, last = bisect_right(ends, start), bisect_right(ends, stop)
        if first < last:
            found.append((first, last))
            across += offsets[first][0] < start
        across += last < len(offsets) and offsets[last][0] < stop
    return found, across


def _bare(text: str, span: Span) -> Span:
    """An added token that swallows the white space around it (Phi-3's do) stands for its own text only."""
    piece = text[span[0] : span[1]]
    start = span[0] + len(piece) - len(piece.lstrip())
    return start, max(start, span[0] + len(piece.rstrip()))


def _rebuilt(tokenizer: Any, ids: Sequence[int], text: str, greedy: Mapping[int, Any]) -> list[Span]:
    """Offsets of a tokenizer that tells none: what its tokens decode to, one after the other, must be the text.

    A character that is spread over several tokens is decoded with all of them. A space that decoding drops belongs to
    the token behind it; one that the tokenizer has put before a word stands for no character.

    Raises:
        RowError: they do not add up to the text.
    """
    offsets: list[Span] = []
    pending: list[int] = []
    at, waiting = 0, 0
    for token in ids:
        pending.append(token)
        piece = tokenizer.decode(pending, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        swallows = greedy.get(token)
        stop = _next(text, piece, _past(text, at) if swallows and swallows.lstrip else at)
        if stop is None:
            if REPLACEMENT in piece and len(pending) < LONGEST:
                continue
            break
        waiting, pending = waiting + len(pending), []
        stop = _past(text, stop) if swallows and swallows.rstrip else stop
        if stop > at:  # what stands for nothing belongs to what is behind it
            offsets += [(at, stop)] * waiting
            at, waiting = stop, 0
    if pending or text[at:].strip():
        raise RowError(
            f"the tokenizer {type(tokenizer).__name__} does not say which characters a token stands for, and its "
            "tokens do not add up to the text: take one with a tokenizer.json"
        )
    return offsets + [(at, at)] * waiting


def _next(text: str, piece: str, at: int) -> int | None:
    """Where a piece ends that stands at once, behind one space, or without its own first space."""
    if text.startswith(piece, at):
        return at + len(piece)
    if text.startswith(" " + piece, at):
        return at + len(piece) + 1
    return at + len(piece) - 1 if piece[:1] == " " and text.startswith(piece[1:], at) else None


def _past(text: str, at: int) -> int:
    """Behind the white space that begins here."""
    while text[at : at + 1].isspace():
        at += 1
    return at
