"""What is said of an evaluation weighs every token the same."""

from __future__ import annotations

import math

import pytest

from tsugi_cli.record.measures import counted, per_token


def test_sums_become_loss_perplexity_and_accuracy():
    found = per_token({"loss_sum": 30.0, "loss_tokens": 20, "right_tokens": 15})
    assert found == {"loss": 1.5, "perplexity": pytest.approx(math.exp(1.5)), "token_accuracy": 0.75}


def test_what_is_not_known_or_no_number_is_left_out():
    assert per_token({"loss_sum": 1e6, "loss_tokens": 1}) == {"loss": 1e6}


def test_what_an_evaluation_is_over_has_its_unit():
    """One sum counts both: a program that reads `tokens` must not get pairs."""
    assert counted({"loss_sum": 30.0, "loss_tokens": 20.0, "right_tokens": 15.0}) == {"tokens": 20}
    assert counted({"loss_sum": 3.0, "loss_tokens": 4.0, "right_pairs": 3.0}) == {"pairs": 4}
