"""What the fork server gives is what a fresh interpreter would be: whoever starts, watches or ends it cannot tell.

With `--fresh` the same tests look at fresh interpreters.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tsugi_cli.bench.links.namespaces import Namespaces, NoNamespace

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

FACTS = """
import json, os, signal, subprocess, sys, threading
facts = {
    "parent": os.getppid(), "group": os.getpgrp(), "cwd": os.getcwd(), "argv": sys.argv, "value": os.environ["VALUE"],
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "torch": "torch" in sys.modules,
    "heard": sys.stdin.readline(), "main": threading.current_thread() is threading.main_thread(),
}
if len(sys.argv) > 1:
    child = subprocess.run([sys.executable, sys.argv[0]], input="more", capture_output=True, text=True)
    facts["child"], facts["pid"] = json.loads(child.stdout), os.getpid()
print(json.dumps(facts))
sys.stderr.write("to stderr")
sys.exit(int(os.environ.get("CODE", 0)))
"""
WAITS = "import sys, time\nprint('there', flush=True)\ntime.sleep(600)"


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "facts.py"
    path.write_text(FACTS)
    return path


def test_a_fork_is_the_callers_child_with_its_files_place_environment_and_exit_code(script, tmp_path, pytestconfig):
    env = {**os.environ, "VALUE": "ours", "CODE": "3"}
    command = [sys.executable, "-u", str(script), "word"]
    result = subprocess.run(
        command, cwd=tmp_path, env=env, input="a line\n", capture_output=True, text=True, check=False,
        start_new_session=True,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (3, "to stderr")
    facts = json.loads(result.stdout)
    assert facts["parent"] == os.getpid()
    assert facts["group"] == facts["pid"], "it leads a group of its own"
    assert (facts["cwd"], facts["argv"]) == (str(tmp_path), [str(script), "word"])
    assert (facts["value"], facts["heard"]) == ("ours", "a line\n")
    assert facts["torch"] != pytestconfig.getoption("--fresh"), "imported before it began"
    assert facts["main"]
    child = facts["child"]
    assert (child["parent"], child["group"]) == (facts["pid"], facts["group"]), "what it starts is its own child"
    assert (child["heard"], child["value"]) == ("more", "ours")


def test_the_callers_blocked_signals_stay_blocked(script):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    try:
        result = subprocess.run(
            [sys.executable, str(script)], env={**os.environ, "VALUE": ""}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert json.loads(result.stdout)["blocked"] == sorted({*before, signal.SIGTERM})


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_proc_shows_its_own_words_and_a_signal_ends_it(tmp_path, number):
    path = tmp_path / "waits.py"
    path.write_text(WAITS)
    command = [sys.executable, str(path), "seen"]
    with subprocess.Popen(
        command, env={**os.environ, "VALUE": "told"}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        own = Path(f"/proc/{process.pid}")
        assert (own / "cmdline").read_bytes().rstrip(b"\0").split(b"\0") == [each.encode() for each in command]
        assert b"VALUE=told" in (own / "environ").read_bytes().split(b"\0")
        process.send_signal(number)
        assert process.wait(100) == -number


def test_a_command_in_another_network_is_there_and_so_is_what_it_starts(tmp_path):
    script = tmp_path / "net.py"
    script.write_text(
        "import os, subprocess, sys\n"
        'print(os.readlink("/proc/self/ns/net"), flush=True)\n'
        "if len(sys.argv) > 1: subprocess.run([sys.executable, sys.argv[0]])\n"
    )
    with contextlib.ExitStack() as opened:
        try:
            made = opened.enter_context(Namespaces())
            made.add("machine")
        except NoNamespace as error:
            pytest.skip(str(error))
        command = made.inside("machine", [sys.executable, str(script), "more"])
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        place = os.readlink(f"/proc/{made.process('machine')}/ns/net")  # noqa: PTH115
    assert result.stdout.split() == [place, place]
    assert place != os.readlink("/proc/self/ns/net")  # noqa: PTH115
