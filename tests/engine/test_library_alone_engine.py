"""One replica with the whole engine running (hub, link, committed rounds): plain PEFT and AdamW, bit for bit."""

from __future__ import annotations

import pytest
from peft import LoraConfig

from tests.library import config, digest, pooled_model, train
from tsugi_kpool.library.session import meet
from tsugi_kpool.world import World

MOST_TURNS = 200
"""Of 20 steps: rounds are committed at the pace of beats, however quick the steps are."""


@pytest.mark.parametrize("changes", [{"payload": "fp32"}, {}, {"k_active": 4, "modules_to_save": ["lm_head"]}])
def test_it_is_plain_peft_bit_for_bit(tmp_path, changes):
    settings = config(min_steps=1, **changes)
    ours, plain = pooled_model(settings), pooled_model(LoraConfig(**settings.to_dict()))
    session = meet(ours, settings.settings(), "default", World(), "tcp://127.0.0.1:0", tmp_path / "keys")
    turns = 0
    while session.engine.aggregator.version < 3 and turns < MOST_TURNS:
        train(ours, 20, seed=turns)
        train(plain, 20, seed=turns)
        turns += 1
    assert digest(ours) == digest(plain), "while rounds committed"
    session.drain(60)
    assert session.engine.aggregator.version >= 3
    assert digest(ours) == digest(plain), "after the last round"
