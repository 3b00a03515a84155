"""What `train.*` refuses, in words that say what to write instead."""

from __future__ import annotations

import pytest

from tsugi_cli.config.compose import compose
from tsugi_kpool.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["accumulate=0"], "train.accumulate must be at least 1, found 0"),
        (["scheduler=cosin"], "train.scheduler"),
        (["decay=0.2"], "train.decay=0.2 is for train.scheduler=wsd, found train.scheduler=cosine_with_min_lr"),
        (["scheduler=constant", "final_lr=0.1"], "train.final_lr=0.1 means nothing to train.scheduler=constant"),
        (["scheduler=wsd", "decay=0"], r"train.decay must be null, a share of the run in \(0, 1\)"),
        (["scheduler=wsd", "decay=0.6", "warmup=0.5"], "train.warmup=0.5 and train.decay=0.6 exceed the run"),
        (["max_steps=40", "warmup=50"], "train.warmup=50 exceed the run of 40 steps"),
        (["warmup=2.5"], "train.warmup must be a share of the run in"),
    ],
)
def test_what_cannot_be_is_refused_by_name(words, problem):
    with pytest.raises(ConfigError, match=problem):
        compose(["model=tiny", *(f"train.{word}" for word in words)])


@pytest.mark.parametrize(
    "words",
    [
        ["scheduler=wsd", "decay=0.5", "warmup=0.5", "final_lr=0.2"],
        ["scheduler=wsd", "decay=10", "warmup=30", "max_steps=40"],
        ["scheduler=linear", "warmup=30"],
        ["scheduler=constant", "warmup=0"],
    ],
)
def test_what_can_be_is_taken(words):
    compose(["model=tiny", *(f"train.{word}" for word in words)])
