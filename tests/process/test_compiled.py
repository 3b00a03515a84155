"""The hub's decisions and the simulator as machine code: they decide the same, and nothing stale is ever used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

FLEET = """
import json
from dataclasses import astuple

import tsugi_kpool.core.hub.hub as hub
from tests.support import hub_plan
from tsugi_kpool.sim import Fleet, Link, Speeds, check_accounting, check_agreement

fleet = Fleet(hub_plan(replicas=3, samples=600), Speeds((0.1, 0.4, 0.1), jitter=0.3), Link(loss=0.1), seed=3)
report = fleet.run(600.0)
wrong = check_agreement(fleet) + check_accounting(fleet)
print(json.dumps([hub.__file__, fleet.history, fleet.kernel.handled, repr(astuple(report)), wrong]))
"""


def python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = os.environ | {"MYPYC_OPT_LEVEL": "0"} | environment
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=280, check=False, env=settings
    )


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_a_compiled_fleet_does_what_its_sources_do(tmp_path):
    built = python("-m", "tsugi_kpool.compiled", XDG_CACHE_HOME=str(tmp_path))
    assert (built.returncode, built.stderr) == (0, "")
    (folder,) = tmp_path.glob("tsugi/compiled/*")
    assert str(folder) in built.stdout
    before = folder.stat().st_mtime_ns
    assert python("-m", "tsugi_kpool.compiled", XDG_CACHE_HOME=str(tmp_path)).returncode == 0
    assert folder.stat().st_mtime_ns == before, "once is enough"

    compiled = python("-c", FLEET, XDG_CACHE_HOME=str(tmp_path), TSUGI_COMPILED="1")
    sources = python("-c", FLEET, XDG_CACHE_HOME=str(tmp_path))
    assert compiled.stderr == sources.stderr == ""
    (ours, *found), (theirs, *expected) = json.loads(compiled.stdout), json.loads(sources.stdout)
    assert ours.startswith(str(folder))
    assert theirs.endswith("tsugi_kpool/core/hub/hub.py")
    assert found == expected
    assert found[-1] == []


def test_what_is_not_compiled_is_said_and_done_without(tmp_path):
    found = python(
        "-c",
        "import tsugi_kpool.core.hub.hub as hub; print(hub.__file__)",
        XDG_CACHE_HOME=str(tmp_path),
        TSUGI_COMPILED="1",
    )
    assert found.returncode == 0
    assert found.stdout.endswith("tsugi_kpool/core/hub/hub.py\n")
    assert found.stderr == "TSUGI_COMPILED is set, but nothing is compiled: run `python -m tsugi_kpool.compiled`\n"


def test_without_a_compiler_it_is_one_line(tmp_path):
    found = python("-m", "tsugi_kpool.compiled", XDG_CACHE_HOME=str(tmp_path), CC="no-such-compiler", PATH="")
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1
    assert "C compiler" in found.stderr
    assert list(tmp_path.glob("tsugi/compiled/*")) == []
