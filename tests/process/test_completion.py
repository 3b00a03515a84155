"""Completion in real shells, as fingers do it: the beginning of a word, Tab, and what stands there then."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

WAIT_S = 100
START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source <(tsugi completion bash); PS1='ready> '"),
    "zsh": (
        ["zsh", "-f", "-i"],
        "autoload -U compinit; compinit -u -D; source <(tsugi completion zsh); PS1='ready> '",
    ),
}
TYPED = [
    ("tsugi finetu", "tsugi finetune"),
    ("tsugi finetune kpool.payl", "tsugi finetune kpool.payload="),
    ("tsugi finetune kpool.payload=bf", "tsugi finetune kpool.payload=bf16"),
    ("tsugi data check data=min", "tsugi data check data=mine.jsonl"),
    ("tsugi finetune --dry", "tsugi finetune --dry-run"),
]
TO_THE_BEGINNING = "\x01"


class Terminal:
    """A shell on a terminal of its own."""

    def __init__(self, shell: str, folder: Path) -> None:
        self.said = ""
        command, setup = START[shell]
        self.main, other = pty.openpty()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "TERM": "dumb", "HOME": str(folder), "PS1": "$ "}
        self.process = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=other, cwd=folder, env=environment, start_new_session=True
        )
        os.close(other)
        self.type(f"{setup}; echo up$((1 + 1))\n")
        self.until("up2")

    def type(self, text: str) -> None:
        os.write(self.main, text.encode())

    def until(self, wanted: str) -> None:
        """Wait until the screen has this text; forget what stands before it."""
        deadline_s = time.monotonic() + WAIT_S
        while wanted not in self.said:
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, f"{wanted!r} never came: {self.said!r}"
            if select.select([self.main], [], [], left_s)[0]:
                self.said += os.read(self.main, 4096).decode(errors="replace")
        self.said = self.said.partition(wanted)[2]

    def close(self) -> None:
        self.process.kill()
        self.process.wait(timeout=WAIT_S)
        os.close(self.main)


def needs(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.jsonl").touch()
    (tmp_path / "mind.png").touch()
    return tmp_path


@pytest.mark.parametrize("shell", START)
def test_tab_completes_commands_options_keys_values_and_files(shell, folder):
    needs(shell)
    terminal = Terminal(shell, folder)
    try:
        for line, whole in TYPED:
            # The shell says what stands in the line after Tab: only what it computes itself is not echoed before.
            terminal.type(f"{line}\t{TO_THE_BEGINNING}echo $((40 + 2)) \n")
            terminal.until(f"42 {whole}")
    finally:
        terminal.close()


def test_fish_completes_the_same(folder):
    needs("fish")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(folder)}
    for line, whole in TYPED:
        program = f"tsugi completion fish | source; complete -C '{line}'"
        result = subprocess.run(
            ["fish", "-c", program],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        found = [each.split("\t")[0] for each in result.stdout.splitlines()]
        assert found == [whole.rpartition(" ")[2]], result.stderr
