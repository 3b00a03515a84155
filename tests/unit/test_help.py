"""Help is found in every way in which people ask for it."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from tsugi_cli.app import app
from tsugi_kpool.errors import ConfigError


@pytest.mark.parametrize("words", [["-h"], ["data", "preview", "-h"], ["sideband", "status", "-h"]])
def test_help_is_the_same_by_all_its_names(words):
    texts = {
        CliRunner().invoke(app, asked).stdout.split("Usage:")[1].strip()
        for asked in (words, [*words[:-1], "--help"], ["help", *words[:-1]])
    }
    assert len(texts) == 1


def test_help_on_a_command_that_there_is_not_is_answered_with_the_nearest():
    result = CliRunner().invoke(app, ["help", "data", "previw"])
    assert isinstance(result.exception, ConfigError)
    assert "tsugi data previw: no such command; did you mean preview?" in str(result.exception).replace(
        "root ", "tsugi "
    )
