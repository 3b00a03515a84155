"""`tsugi doctor`: what is missing is a problem with its way out, and a machine that has everything has none."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from tsugi_cli.app import app
from tsugi_cli.launch.doctor import OPTIONAL, PACKAGES, Facts, examine, lines

TORCH = {"version": "2.13.0", "cuda": "12.8", "hip": None, "devices": [["H200", 140e9]], "gloo": True, "nccl": True}
GOOD = Facts(
    python=(3, 11, 7), system="Linux", packages=dict.fromkeys((*PACKAGES, *OPTIONAL), "1.0"), torch=TORCH,
    torch_error="", driver="570.1", cores=8, memory_free=64e9, disks={"disk": 100e9}, shared_free=1e9,
    open_files=65536, loopback=True, clock_synchronised=True,
)  # fmt: skip


def test_a_machine_that_has_everything_has_no_problem():
    assert {each.verdict for each in examine(GOOD)} == {"ok"}
    assert "GPU 0" in "\n".join(lines(examine(GOOD)))


@pytest.mark.parametrize(
    ("changes", "verdict", "advice"),
    [
        ({"packages": {**GOOD.packages, "peft": None}}, "problem", "pip install peft"),
        ({"packages": {**GOOD.packages, "gguf": None}}, "note", "pip install 'tsugi[demo]'"),
        ({"torch": None, "torch_error": "ImportError: libc"}, "problem", "ImportError: libc"),
        ({"torch": {**TORCH, "cuda": None, "devices": []}}, "problem", "pip install torch --index-url"),
        ({"torch": {**TORCH, "devices": []}}, "problem", "torch was built for CUDA 12.8"),
        ({"torch": {**TORCH, "cuda": None, "devices": []}, "driver": None}, "note", "take a small model"),
        ({"torch": {**TORCH, "gloo": False}}, "problem", "install a torch that has it"),
        ({"memory_free": 1e9}, "note", "take a smaller model"),
        ({"disks": {"disk": 1e6}}, "note", "make room"),
        ({"disks": {"disk": "no home directory"}}, "problem", "no home directory"),
        ({"shared_free": 1e6}, "note", "--shm-size=1g"),
        ({"open_files": 20}, "problem", "ulimit -n 64"),
        ({"open_files": -1}, "ok", ""),
        ({"loopback": False}, "problem", "no run can start"),
        ({"clock_synchronised": False}, "note", "timedatectl"),
    ],
)
def test_what_is_missing_is_told_with_the_way_out(changes, verdict, advice):
    found = [each for each in examine(replace(GOOD, **changes)) if each.verdict != "ok"]
    if verdict == "ok":
        assert not found
    else:
        assert [each.verdict for each in found] == [verdict]
        assert advice in found[0].advice


def test_this_machine_can_run_what_its_tests_run():
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0, result.output
    assert {"python", "torch", "open files"} <= {json.loads(line)["what"] for line in result.stdout.splitlines()}
