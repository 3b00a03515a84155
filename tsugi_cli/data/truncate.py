"""What becomes of a sample that is longer than `data.max_tokens`. Pure."""

from __future__ import annotations

from typing import Literal

from .rows import Sample, Span

Truncate = Literal["drop", "end", "start"]
DROPPED = "dropped: longer than data.max_tokens"
CUT_END = "cut at the end: longer than data.max_tokens"
CUT_START = "cut at the start: longer than data.max_tokens"
QUESTION = 16
"""Tokens of a question that is cut at its start."""
NOTHING_LEFT = "dropped: no answer is left within data.max_tokens"


def truncated(sample: Sample, most: int, how: Truncate) -> tuple[Sample | None, str]:
    """A sample of at most `most` tokens, and what was done to it ("" for nothing); None when nothing is left.

    An answer is never trained without its question: cut at the start, one before which fewer than QUESTION tokens of
    it are left is context only.
    """
    size = len(sample.ids)
    if size <= most:
        return sample, ""
    if how == "drop":
        return None, DROPPED
    cut = 0 if how == "end" else size - most
    questions = [0, *(stop for _, stop in sample.spans)]
    spans = [
        _within(span, cut, cut + most)
        for span, asked in zip(sample.spans, questions, strict=False)
        if how == "end" or asked >= cut or span[0] - cut >= QUESTION
    ]
    kept = Sample(sample.ids[cut : cut + most], tuple(span for span in spans if span is not None))
    if kept.tokens == 0:
        return None, NOTHING_LEFT
    return kept, CUT_END if how == "end" else CUT_START


def pieces(ids: list[int], most: int) -> list[Sample]:
    """A text of any length as samples of at most `most` tokens, all trained; a rest of one token predicts nothing."""
    cuts = [ids[at : at + most] for at in range(0, len(ids), most)]
    return [Sample(each, ((0, len(each)),)) for each in cuts if len(each) > 1]


def _within(span: Span, start: int, stop: int) -> Span | None:
    first, last = max(span[0], start) - start, min(span[1], stop) - start
    return (first, last) if first < last else None
