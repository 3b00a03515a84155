"""Which rows are held out: by what they say, so that nothing that is held out is trained on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsugi_cli.data.rows import Row
from tsugi_cli.data.split import Part, content_hash, counts, hashes_of, split


def row(text: str, line: int = 1, file: str = "x.jsonl") -> Row:
    return Row(file, line, ({"role": "user", "content": "?"}, {"role": "assistant", "content": text}), (None, None))


def cut(texts, given=Part.OPEN, seed=0, n_train=0, n_eval=None, n_test=0, **more):
    hashes = hashes_of([content_hash(row(text), seed) for text in texts])
    parts = np.full(len(texts), given, np.uint8) if isinstance(given, Part) else np.array(given, np.uint8)
    return split(hashes, parts, n_train, n_eval, n_test, **more)


def held(texts, found, *parts):
    return {text for text, part in zip(texts, found.parts, strict=True) if part in parts}


@given(st.lists(st.sampled_from("abcdefgh"), min_size=1), st.integers(0, 3), st.integers(0, 3), st.integers(0, 9))
def test_nothing_that_is_held_out_is_trained_on(texts, n_eval, n_test, n_train):
    found = cut(texts, n_eval=n_eval, n_test=n_test, n_train=n_train)
    for_eval, for_test, train = (held(texts, found, part) for part in (Part.EVAL, Part.TEST, Part.TRAIN))
    assert not for_eval & for_test
    assert not (for_eval | for_test) & train
    if n_eval + n_test < len(set(texts)):
        assert (len(for_eval), len(for_test)) == (n_eval, n_test)
    assert counts(found.parts)["eval"] == len(for_eval), "held out once, however often it is there"
    assert counts(found.parts)["train"] <= (n_train or len(texts))
    assert found.repeated == len(texts) - len(set(texts))


def test_the_cut_is_that_of_the_content_whatever_the_order():
    texts = [str(number) for number in range(40)]
    assert held(texts, cut(texts, n_eval=9), Part.EVAL) == held(texts[::-1], cut(texts[::-1], n_eval=9), Part.EVAL)
    assert held(texts, cut(texts, n_eval=9), Part.EVAL) != held(texts, cut(texts, n_eval=9, seed=1), Part.EVAL)


@pytest.mark.parametrize(("rows", "n_eval"), [(5, 0), (100, 10), (5000, 64)])
def test_of_ones_own_data_a_tenth_is_held_out_and_at_most_64(rows, n_eval):
    assert counts(cut([str(number) for number in range(rows)]).parts)["eval"] == n_eval


def test_rows_that_all_say_the_same_are_trained_on():
    assert counts(cut(["a"] * 9, n_eval=3).parts)["train"] == 9
    assert held(list("aabbcc"), cut(list("aabbcc"), n_eval=3), Part.TRAIN)
    assert not held(list("abc"), cut(list("abc"), n_eval=3), Part.TRAIN), "none repeats: what was asked for is done"


def test_what_files_of_their_own_hold_out_leaves_train():
    found = cut(["a", "b", "c", "b"], given=[Part.TRAIN, Part.TRAIN, Part.TRAIN, Part.EVAL])
    assert list(found.parts) == [Part.TRAIN, Part.LEFT_OUT, Part.TRAIN, Part.EVAL]
    assert (found.held_elsewhere, found.shared) == (1, 0)
    own = cut(["a", "b", "c", "b"], given=[Part.TRAIN, Part.TRAIN, Part.TRAIN, Part.EVAL], users_own=True)
    assert (list(own.parts)[1], own.shared) == (Part.TRAIN, 1), "a user's own code has made it so; it is counted"


def test_a_row_is_what_it_says_wherever_it_stands():
    assert content_hash(row("a"), 0) == content_hash(row("a", 7, "y.jsonl"), 0) != content_hash(row("b"), 0)
