"""The files of a run's records: whole lines, whatever the disk and the records do; nothing raises into the hub."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from tsugi_cli.record.recorder import Recorder
from tsugi_cli.record.run_dir import RunPaths, create
from tsugi_kpool.core.events import Note
from tsugi_kpool.errors import ConfigError, ExitCode

FULL_DISK = """
import resource, sys
from pathlib import Path
from tsugi_cli.record.recorder import Recorder
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.events import Aborted, Finished, Joined
recorder = Recorder(RunPaths(Path(sys.argv[1])))
recorder.tell(Joined(0, "a", 1))
size, hard = RunPaths(Path(sys.argv[1])).events.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))  # room for a part of the next line
for number in range(3):
    recorder.tell(Aborted(number, "late"))
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
recorder.tell(Finished(1))
recorder.close()
print(recorder.lost)
print([each["event"] for each in recorder.pending()].count("records_lost"))
"""


def test_a_run_needs_no_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    paths = create(tmp_path / "runs", "here", datetime(2026, 11, 24))
    assert paths.logs.is_dir()


def test_a_full_disk_costs_the_lines_of_that_time_and_no_other(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.split() == ["3", "1"], "said once"
    lines = RunPaths(tmp_path).events.read_text().splitlines()
    assert [json.loads(line)["event"] for line in (lines[0], lines[-1])] == ["joined", "finished"]
    assert len(lines) == 3, "and what is left of the line that was torn"


@pytest.mark.parametrize("odd", [object(), {"deep": object()}])
def test_a_record_that_cannot_be_written_is_counted(tmp_path, odd):
    recorder = Recorder(RunPaths(tmp_path))
    recorder.tell(Note(odd))
    recorder.tell(Note("after"))
    recorder.close()
    assert recorder.lost == 1
    lines = RunPaths(tmp_path).events.read_text().splitlines()
    assert json.loads(lines[-1])["text"] == "after"


def test_a_run_directory_that_has_gone_raises_nothing(tmp_path):
    recorder = Recorder(RunPaths(tmp_path))
    for path in tmp_path.iterdir():
        path.unlink()
    tmp_path.rmdir()
    recorder.tell(Note("nobody reads this"))
    recorder.close()


def test_a_run_directory_that_has_gone_is_said_once_and_one_that_is_back_gets_its_lines(tmp_path):
    """Its open files live on, and every write to them succeeds."""
    run, away = tmp_path / "run", tmp_path / "away"
    run.mkdir()
    recorder = Recorder(RunPaths(run))
    recorder.tell(Note("before"))
    run.rename(away)
    for _ in range(3):
        recorder.tell(Note("nobody finds this"))
    told = [each["event"] for each in recorder.pending()]
    assert (recorder.lost, told.count("records_lost")) == (3, 1)
    assert "nobody" not in RunPaths(away).events.read_text()
    away.rename(run)
    recorder.tell(Note("after"))
    RunPaths(run).events.unlink()
    recorder.tell(Note("into a file of its own"))
    recorder.close()
    (line,) = RunPaths(run).events.read_text().splitlines()
    assert json.loads(line)["text"] == "into a file of its own"


@pytest.mark.parametrize("runs_dir", ["file/runs", "/proc/runs"])
def test_a_run_directory_that_cannot_be_made_is_one_error_that_names_the_folder(tmp_path, monkeypatch, runs_dir):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        create(Path(runs_dir), "here", datetime(2026, 11, 29))
    (problem,) = caught.value.problems
    assert problem.startswith(f"runs_dir: cannot make a directory in {Path(runs_dir).absolute()}: ")
    assert caught.value.exit_code is ExitCode.CONFIG
