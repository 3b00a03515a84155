"""`tsugi settings`: every key is there, says something, and is found by what people type."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from tsugi_cli.app import app
from tsugi_cli.config.describe import UNKNOWN, search, settings
from tsugi_cli.config.schema import leaf_types
from tsugi_kpool.errors import ConfigError


def test_every_key_is_described():
    found = settings()
    assert [each.key for each in found] == list(leaf_types())
    assert [each.key for each in found if not each.about or each.default == UNKNOWN] == []
    assert 20 <= sum(each.basic for each in found) <= 45, "what a newcomer reads"


@pytest.mark.parametrize(
    ("word", "key"), [("LR", "train.lr"), ("quantisation", "kpool.error_feedback"), ("int4", "kpool.payload")]
)
def test_a_word_finds_keys_first_and_then_what_is_said(word, key):
    assert key in [each.key for each in search(word)]


def test_range_kind_and_default_are_those_that_hold():
    found = {each.key: each for each in settings()}
    assert found["sideband.port"].allowed == "in [0, 65535]"
    assert (found["data.n_eval"].kind, found["data.packing"].default) == ("int | null", "false")


def test_a_word_that_no_setting_has_is_answered_with_the_nearest():
    result = CliRunner().invoke(app, ["settings", "train.lrr"])
    assert isinstance(result.exception, ConfigError)
    assert "train.lrr: no setting has this word; did you mean train.lr?" in str(result.exception)
