"""`tsugi recipes`: list, show, copy; what does not exist is answered with what does."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tsugi_cli.app import app
from tsugi_cli.config.compose import compose, recipes
from tsugi_kpool.errors import ConfigError


def said(*words: str) -> str:
    result = CliRunner().invoke(app, ["recipes", *words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("words", [(), ("ls",)])
def test_the_list_names_every_recipe(words):
    assert set(recipes()) <= set(said(*words).split())


def test_a_recipe_is_shown_as_its_file_stands():
    assert "micro_batch: 1" in said("show", "smollm2_tools")


def test_a_name_that_is_none_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean smollm2_tools"):
        said("show", "smolm2_tools")


def test_a_copy_composes_and_never_replaces_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said("copy", "smollm2_tools", "mine.yaml")
    assert compose(["recipe=mine.yaml"]) == compose(["recipe=smollm2_tools"])
    with pytest.raises(ConfigError, match=r"mine\.yaml cannot be written: File exists"):
        said("copy", "smollm2_docstrings", "mine.yaml")
    said("copy", "smollm2_docstrings")
    assert Path("smollm2_docstrings.yaml").exists()
