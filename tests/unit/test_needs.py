"""What a hub lacks, as a user meets it: one line, an exit code, and nothing made."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from tests.pictures import drawn, fleet, shown
from tsugi_cli import app
from tsugi_cli.console.table import page
from tsugi_cli.launch.request import RunRequest
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband.keys import RunKeys

TINY = ["model=tiny", "data.n_train=8", "data.n_eval=2", "data.n_test=0", "data.scorer=null", "evaluate.examples=0"]


@pytest.fixture
def tsugi(monkeypatch, tmp_path, capsys):
    """The command line in an empty folder; returns its exit code and what it says to stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["tsugi", *words])
        with pytest.raises(SystemExit) as ended:
            app.main()
        return ended.value.code, capsys.readouterr().err

    return call


@pytest.mark.parametrize("command", ["finetune", "hub"])
def test_a_hub_without_keys_is_refused_before_anything_is_made(tsugi, command):
    sideband_keys.save(RunKeys.none(), Path("none.json"))
    code, said = tsugi(
        command, *TINY, "sideband.bind=0.0.0.0", "topology.trust_network=true", "sideband.keys=none.json"
    )
    assert (code, said.count("\n")) == (2, 1), said
    assert "none.json holds no keys; sideband.insecure=true goes without" in said
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("content", "mode", "said"), [("{}", 0o600, "no usable sideband keys"), ("{}", 0o644, "can be read by others")]
)
def test_an_unusable_key_file_is_told_before_anything_is_made(tsugi, content, mode, said):
    path = Path("keys.json")
    path.write_text(content)
    path.chmod(mode)
    code, told = tsugi("finetune", *TINY, "sideband.keys=keys.json")
    assert (code, told.count("\n"), said in told) == (2, 1, True), told
    assert not Path("runs").exists()


def test_a_run_directory_whose_keys_are_gone_is_not_served_to_others(tsugi, tmp_path):

    paths = RunRequest.read([*TINY, "sideband.bind=0.0.0.0", "topology.address=127.0.0.1"]).settle(datetime.now())
    sideband_keys.save(RunKeys.none(), paths.keys)
    code, said = tsugi("hub", "--run", str(paths.root), "--plain")
    assert (code, said.count("\n")) == (4, 1), said
    assert "does not listen on 0.0.0.0 without keys" in said


def test_a_run_that_has_ended_is_neither_served_nor_stopped(tsugi, tmp_path):
    paths = RunRequest.read([*TINY]).settle(datetime.now())
    paths.summary.write_text('{"outcome": "finished"}')
    for command in (("hub", "--run", str(paths.root)), ("stop", str(paths.root))):
        code, said = tsugi(*command)
        assert (code, said.count("\n"), "this run has ended" in said) == (13, 1, True), said


def test_a_missing_package_for_metrics_is_a_mistake_of_the_settings(tsugi, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    for command in ("finetune", "hub"):
        code, said = tsugi(command, *TINY, "sideband.metrics_port=0")
        assert (code, said.count("\n")) == (2, 1), said
        assert "pip install 'tsugi[metrics]'" in said
    assert not Path("runs").exists()


def test_a_run_without_keys_has_no_tokens_to_show(tsugi, tmp_path):
    paths = RunRequest.read([*TINY, "sideband.insecure=true"]).settle(datetime.now())
    sideband_keys.save(replace(RunKeys.none(), address="tcp://10.0.0.1:51820"), paths.keys)
    code, said = tsugi("sideband", "token", "--run", str(paths.root))
    assert (code, said.count("\n"), "tsugi join tcp://10.0.0.1:51820 --insecure" in said) == (11, 1, True), said


def test_output_that_nobody_reads_and_a_full_disk_are_no_internal_errors():
    command = [sys.executable, "-m", "tsugi_cli.app", "recipes"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (0, "")
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (4, "tsugi: could not write: No space left on device\n")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 12)])
def test_a_sideband_without_keys_says_so_as_long_as_it_is_looked_at(width, height):
    status = fleet(insecure=True)
    assert "NO KEYS" in shown(status, width, height).splitlines()[0]

    assert drawn(page(status, datetime.now()), width)[0].startswith("NO KEYS")
    assert "NO KEYS" not in shown(fleet(), width, height)
