"""Exit codes are a promise: the page, the enum and the error classes agree."""

from __future__ import annotations

import errno
import re
import sys
from pathlib import Path

import pytest

from tests.unit.test_checkpoints import manifest
from tsugi_cli import app
from tsugi_cli.launch.closing import go_on
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool import errors
from tsugi_kpool.errors import ExitCode, TsugiError

PAGE = Path(__file__).parents[2] / "docs" / "exit-codes.md"


def test_page_lists_every_exit_code():
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: int(code) for code, name in rows} == {code.name: int(code) for code in ExitCode}


def test_error_tree_in_the_docstring_is_the_tree():
    drawn = set(re.findall(r"(\w*Error_?)\b", errors.__doc__ or ""))
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, TsugiError)]
    real = {kind.__name__ for kind in kinds}
    assert drawn == real


def test_a_file_of_another_user_is_no_bug_of_ours(tmp_path, monkeypatch, capsys):
    """Its folder may not be entered: even whether it is there cannot be asked."""
    closed = tmp_path / "sideband" / "keys.json"

    def denied() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(closed))

    monkeypatch.setattr(app, "app", denied)
    monkeypatch.setattr(sys, "argv", ["tsugi"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == ExitCode.ENVIRONMENT
    assert capsys.readouterr().err == f"tsugi: this user may not look at {closed}: Permission denied\n"


def test_how_to_go_on_names_a_command_only_if_there_is_something_to_train_on(tmp_path):
    """Ctrl-C may come when all data are used up, before the end."""
    paths = RunPaths(tmp_path)
    assert "no checkpoint" in go_on(paths, None)
    assert (
        go_on(paths, manifest(3, done=((0, 79),), samples_total=80)) == f"to go on: tsugi finetune resume={tmp_path}"
    )
    assert "all of its 80 samples were trained on" in go_on(paths, manifest(3, done=((0, 80),), samples_total=80))
