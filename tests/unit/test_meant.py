"""Where no run is, every command that reads one says so in the same words, with the same exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tsugi_cli.app import app
from tsugi_cli.record.meant import meant, unheard
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.errors import ExitCode, TsugiError

READERS = [
    ("sideband", "status", "--run"),
    ("sideband", "token", "--run"),
    ("console", "--run"),
    ("export", "--run"),
    ("report",),
    ("stop",),
]
"""Commands, up to the word that a run's directory follows."""


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without runs, for a user who has never had one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def refused(*words: str) -> str:
    """What a command says that is the user's mistake."""
    error = CliRunner().invoke(app, list(words)).exception
    assert isinstance(error, TsugiError), words
    assert error.exit_code == ExitCode.CONFIG, words
    return str(error)


@pytest.mark.parametrize("words", READERS, ids=" ".join)
def test_where_no_run_is_every_command_says_so_and_exits_alike(nowhere, words):
    *command, last = words
    told = refused(*(command if last == "--run" else words))
    assert told.startswith("no run found here; start one with `tsugi finetune`, or name one ")
    (nowhere / "runs" / "mine").mkdir(parents=True)
    assert refused(*words, "runs/mnie") == "runs/mnie: no such run directory; did you mean runs/mine?"
    assert refused(*words, "runs/mine").startswith("runs/mine is no run directory: it holds none of config.yaml, ")


def test_a_run_that_is_there_and_does_not_listen_yet_is_another_case(nowhere):
    paths = RunPaths(nowhere / "runs" / "mine")
    paths.root.mkdir(parents=True)
    paths.config.touch()
    for words in READERS[:2]:
        error = CliRunner().invoke(app, [*words, "runs/mine"]).exception
        assert isinstance(error, TsugiError)
        assert (error.exit_code, str(error)) == (ExitCode.UNREACHABLE, str(unheard(paths)))


def test_the_newest_run_is_meant_without_a_name_and_by_latest(nowhere):
    root = nowhere / "runs" / "mine"
    root.mkdir(parents=True)
    RunPaths(root).config.touch()
    (nowhere / "runs" / "latest").symlink_to("mine")
    assert meant(None) == meant("latest") == meant("runs/mine") == RunPaths(root)
