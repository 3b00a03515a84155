"""What wants a run to stop, and how often."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tsugi_cli.signals import ECHO_S, STOPS, Signals


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


EARLY = """
import os, signal, sys
from tsugi_cli import entry
entry.listen()
assert not {"typer", "msgspec", "tsugi_cli.app"} & set(sys.modules), "nothing slow comes before it listens"
os.kill(os.getpid(), int(sys.argv[1]))
signal.pause()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 143), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_the_first_second_is_heard_too(number, code):
    result = subprocess.run(
        [sys.executable, "-c", EARLY, str(int(number))], timeout=60, capture_output=True, check=False
    )
    assert (result.returncode, result.stderr) == (code, b"")
