"""What wants a run to stop, and how often."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tsugi_cli.launch.supervisor import complete
from tsugi_cli.signals import ECHO_S, STOPS, Signals
from tsugi_kpool.errors import MachineError


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_to_a_process_and_its_group_is_one(number):
    """Two of them would end the run at once, without an adapter and a checkpoint."""
    now_s = [100.0]
    with Signals(clock=lambda: now_s[0]) as signals:
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert signals.count == 1
        now_s[0] += ECHO_S
        signal.raise_signal(number)
        assert signals.count == 2


def test_who_was_told_to_end_says_so_in_the_exit_code():
    with Signals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.exit_code == 130
        signal.raise_signal(signal.SIGTERM)
        assert signals.exit_code == 143


def test_a_run_outlasts_its_terminal():
    with Signals() as signals:
        signal.raise_signal(signal.SIGHUP)
        assert (signals.hung_up, signals.count) == (True, 0)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_what_leaves_nothing_behind_ends_with_its_terminal():
    with Signals(outlasts=False):
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


HEARS = """
import signal, subprocess, sys
from tsugi_cli.signals import Signals, deaf
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
child = "import signal; signal.raise_signal(signal.SIGTERM); signal.raise_signal(signal.SIGHUP)"
with Signals() as signals, deaf():
    print(subprocess.run([sys.executable, "-c", child]).returncode)
"""


def test_processes_are_ended_by_sighup_whatever_their_launcher_has_inherited():
    """Under `nohup` it is ignored, and every child would ignore it, too; SIGTERM is not for them."""
    result = subprocess.run([sys.executable, "-c", HEARS], timeout=60, capture_output=True, text=True, check=True)
    assert result.stdout == f"{-signal.SIGHUP}\n"


def test_a_process_that_prepares_is_ours_to_end():
    """In a session of its own: neither Ctrl-C nor a closed terminal reaches it before us."""
    sessions = "import os, sys; sys.stderr.write(f'{os.getsid(0) == os.getpid()}'); sys.exit(3)"
    assert complete([sys.executable, "-c", sessions], 60.0) == (3, "True")


def test_a_process_that_prepares_ends_when_nobody_wants_it_or_it_takes_too_long():
    waits = [sys.executable, "-c", "import signal; signal.pause()"]
    assert complete(waits, 60.0, lambda: True) == (None, "")
    with pytest.raises(MachineError, match="not done after 0 s"):
        complete(waits, 0.0)


CLOSED = """
import os, sys
from tsugi_cli import entry
entry.stand_in()
opened = os.open(os.devnull, os.O_RDONLY)
print("nobody reads this")
sys.stdout.flush()
sys.exit(0 if opened > 2 and sys.stderr.writable() and sys.stdin.read() == "" else 1)
"""


def test_no_file_takes_the_place_of_a_closed_stdout():
    command = ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, CLOSED]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0


EARLY = """
import os, signal, sys
from tsugi_cli import entry
entry.listen()
assert not {"typer", "msgspec", "tsugi_cli.app"} & set(sys.modules), "nothing slow comes before it listens"
os.kill(os.getpid(), int(sys.argv[1]))
signal.pause()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 143), (signal.SIGTERM, 143), (signal.SIGINT, 130),
                                              (signal.SIGHUP, -signal.SIGHUP)])  # fmt: skip
def test_a_signal_in_the_first_second_is_heard_too(number, code):
    result = subprocess.run(
        [sys.executable, "-c", EARLY, str(int(number))], timeout=60, capture_output=True, check=False
    )
    assert (result.returncode, result.stderr) == (code, b"")
