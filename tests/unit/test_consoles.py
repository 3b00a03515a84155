"""Consoles on terminals that resize, break or go away never raise into a run."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import pytest
from rich.console import Console as Terminal

from tests.pictures import SUMMARY, Tty, event, fleet, xterm
from tsugi_cli.console.choose import choose
from tsugi_cli.console.console import Console
from tsugi_cli.console.detached import LastingConsole
from tsugi_cli.console.live import RELEASE, LiveConsole
from tsugi_cli.console.plain import PlainConsole
from tsugi_cli.console.status import _Pane
from tsugi_cli.record.answer import Answer

__all__ = ["xterm"]


def use(console: Console) -> None:
    console.open()
    console.message("hello")
    console.show(fleet())
    console.event(event("failed", replica=1, reason="gone"))
    console.event(event("committed", round=1))
    console.show(fleet(tokens=16_000))
    console.report(SUMMARY)
    console.close()
    console.close()


def test_choose(xterm: pytest.MonkeyPatch) -> None:
    assert isinstance(choose(Tty(), plain=False), LiveConsole)
    assert isinstance(choose(Tty(), plain=True), PlainConsole)
    assert isinstance(choose(StringIO(), plain=False), PlainConsole)
    ascii_tty = SimpleNamespace(isatty=lambda: True, encoding="ascii")
    assert isinstance(choose(ascii_tty, plain=False), PlainConsole)  # type: ignore[arg-type]
    with open(os.devnull, "w") as closed:  # noqa: PTH123
        pass
    assert isinstance(choose(closed, plain=False), PlainConsole)
    xterm.setenv("TERM", "dumb")
    assert isinstance(choose(Tty(), plain=False), PlainConsole)


def test_live_console_draws_and_ends_with_the_report(xterm: pytest.MonkeyPatch) -> None:
    out = Tty()
    use(LiveConsole(out))
    text = out.getvalue()
    assert "K=2 of N=8" in text
    assert text.index("hello") < text.index("K=2 of N=8") < text.index("from peft")
    assert text.index("\x1b[?25l") < text.index("\x1b[?25h")  # the cursor is back
    assert "\x1b[?1049" not in text  # never the alternate screen


def on_screen(written: str) -> str:
    """What is left of it: the cursor going up a line and erasing it takes the newest line away."""
    lines = [""]
    for part in re.split(r"(\x1b\[1A\x1b\[2K|\n)", written):
        if part == "\n":
            lines.append("")
        elif part == "\x1b[1A\x1b[2K":
            lines.pop()
            lines[-1] = ""
        else:
            lines[-1] += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", part)
    return "\n".join(lines)


def test_the_report_takes_the_picture_s_place_and_without_one_the_last_picture_stays(xterm) -> None:
    failed, finished = Tty(), Tty()
    for out in (failed, finished):
        with LiveConsole(out) as console:
            console.show(fleet(samples_done=41))
            console.show(fleet(tokens=16_000))
            if out is finished:
                console.report(SUMMARY)
    assert on_screen(failed.getvalue()).count("42/448 samples") == 1
    assert "41/448" not in on_screen(failed.getvalue())
    assert "samples  " not in on_screen(finished.getvalue()).split("eval loss")[0]
    assert "from peft" in on_screen(finished.getvalue())


def test_live_console_starts_over_in_a_resized_window(xterm: pytest.MonkeyPatch) -> None:
    out = Tty()
    with LiveConsole(out) as console:
        console.message("run directory")
        console.show(fleet())
        xterm.setenv("COLUMNS", "100")
        xterm.setenv("LINES", "30")
        console._terminal = Terminal(file=out, force_terminal=True, width=100, height=30)
        console.show(fleet())
    assert out.getvalue().count("run directory") == 2
    assert not console.broken


@pytest.mark.parametrize("make", [LiveConsole, PlainConsole])
@pytest.mark.parametrize("when", ["before", "while"])
@pytest.mark.parametrize("how", ["pipe", "closed"])
def test_a_broken_terminal_goes_quiet(make, when: str, how: str, xterm: pytest.MonkeyPatch) -> None:
    out, streams = Tty(), (sys.stdout, sys.stderr)
    console = make(out)
    if when == "while":
        console.open()
        console.show(fleet())
    if how == "pipe":
        out.breaks = True
    else:
        out.close()
    use(console)
    assert console.broken
    assert (sys.stdout, sys.stderr) == streams


def test_a_real_closed_pipe_goes_quiet(xterm: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        for console in (PlainConsole(stream), LiveConsole(stream)):
            use(console)
            assert console.broken
        with pytest.raises(BrokenPipeError):
            stream.close()  # what was still buffered is the stream's own affair


def lines(path: Path) -> TextIO:
    return path.open("a", encoding="utf-8")


@pytest.mark.parametrize("make", [LiveConsole, PlainConsole])
@pytest.mark.parametrize("how", ["reader gone", "hung up"])
def test_a_run_s_console_goes_on_as_lines_in_a_file(make, how: str, xterm, tmp_path, capsys) -> None:
    out, log, hung_up = Tty(), tmp_path / "run" / "logs" / "console.log", [False]
    log.parent.mkdir(parents=True)
    console = LastingConsole(make(out), log, lambda: hung_up[0], lines)
    with console:
        console.show(fleet())
        assert console.seen
        assert not log.exists()
        out.breaks, hung_up[0] = how == "reader gone", how == "hung up"
        console.message("hello")
        console.show(fleet(samples_done=43, stage="draining"))
        console.report(SUMMARY)
        assert not console.seen, "what is secret is not for a file"
    said = log.read_text()
    assert said.index("detached") < said.index("hello") < said.index("43/448 samples") < said.index("from peft")
    assert f"tsugi console --run {tmp_path / 'run'}" in said
    assert all(line.isprintable() for line in said.splitlines())
    if how == "hung up":  # the terminal is there: it is told, and gets its cursor back
        assert "hung up; the run goes on" in " ".join(out.getvalue().split())
        assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h")
        assert "hello" not in out.getvalue()
    else:
        assert "nobody reads this output; the run goes on" in capsys.readouterr().err


def test_lines_that_somebody_keeps_go_on_where_they_are(tmp_path) -> None:
    """As under `nohup`: what can still be written to is not left."""
    out, released = StringIO(), []

    def release(log: Path) -> TextIO:
        released.append(log)
        return StringIO()

    console = LastingConsole(PlainConsole(out), tmp_path / "logs" / "console.log", lambda: True, release)
    console.message("hello")
    console.message("again")
    assert out.getvalue() == "hello\nagain\n"
    assert len(released) == 1, "other output may still have gone to a terminal"


def test_a_log_that_cannot_be_made_is_no_reason_to_end(tmp_path) -> None:
    out = Tty()
    out.breaks = True
    console = LastingConsole(PlainConsole(out), tmp_path / "none" / "console.log", lambda: False, lines_or_nothing)
    use(console)
    assert not console.broken


def lines_or_nothing(path: Path) -> TextIO:
    try:
        return lines(path)
    except OSError:
        return Path(os.devnull).open("w")


STOPS = """
import os, select, sys
from tests.pictures import fleet
from tsugi_cli.console.live import LiveConsole

def key():  # a read alone would sleep through a signal that came just before it
    while not select.select([0], [], [], 0.1)[0]:
        pass
    return os.read(0, 1)

with LiveConsole(sys.stdout) as console:
    while key() not in (b"q", b""):
        console.show(fleet())
"""


def test_ctrl_z_lends_the_shell_its_cursor_and_fg_draws_anew(xterm) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", STOPS], stdin=subprocess.PIPE, stdout=follower, process_group=0, text=True
    )
    os.close(follower)

    def drawn() -> str:
        """One turn, up to the picture's end."""
        process.stdin.write(".")
        process.stdin.flush()
        found = ""
        while RELEASE not in found:
            found += said()
        return found

    def said() -> str:
        assert select.select([leader], [], [], 60.0)[0], "nothing in time"
        return os.read(leader, 65_536).decode(errors="replace")

    try:
        assert "K=2 of N=8" in drawn()
        process.send_signal(signal.SIGTSTP)
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        assert said() == "\x1b[?25h", "the shell has a cursor"
        process.send_signal(signal.SIGCONT)
        again = drawn()
        assert again.index("\x1b[2J") < again.rindex("\x1b[?25l") < again.rindex("K=2 of N=8")
        process.stdin.write("q")
        process.stdin.close()
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(leader)


@pytest.fixture
def screen() -> Iterator[TextIO]:
    """A real terminal, which shows what is typed."""
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w", encoding="utf-8") as stream, os.fdopen(leader):
        yield stream


def shows_keys(screen: TextIO) -> bool:
    return bool(termios.tcgetattr(screen.fileno())[3] & termios.ECHO)


def test_keys_move_no_picture(xterm, screen) -> None:
    """A `^C` at the end of a full line would wrap, and leave the picture's first lines behind."""
    console = LiveConsole(screen)
    with console:
        assert not shows_keys(screen)
        console._lend()  # Ctrl-Z: the shell's turn
        assert shows_keys(screen)
        console._take_back()
        console.show(fleet())
        assert not shows_keys(screen)
    assert shows_keys(screen)


def test_keys_move_no_watched_status(xterm, screen) -> None:
    with _Pane(Answer(screen)):
        assert not shows_keys(screen)
    assert shows_keys(screen)


def test_a_console_in_the_background_leaves_the_terminal_to_the_others(xterm, screen, monkeypatch) -> None:
    monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
    with LiveConsole(screen):
        assert shows_keys(screen)


LETS_GO = """
import os, sys
from pathlib import Path
from tsugi_cli.console.terminal import let_go
sys.stdin.readline()  # until the terminal has been closed
try:
    sys.stdout.write("half a picture"); sys.stdout.flush()
except OSError:
    pass
file = let_go(Path(sys.argv[1]))
file.write("a line\\n"); file.flush()
print("printed", flush=True)
os.write(2, b"a library's warning\\n")
assert sys.stdin.read() == ""
Path(sys.argv[2]).touch()
"""


def test_nothing_that_a_process_writes_fails_for_a_closed_terminal(tmp_path) -> None:
    leader, follower = pty.openpty()
    log, done = tmp_path / "log", tmp_path / "done"
    process = subprocess.Popen(
        [sys.executable, "-c", LETS_GO, str(log), str(done)],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    os.close(leader)
    assert process.wait(60) == 0
    assert done.exists()
    assert log.read_text() == "a line\nprinted\na library's warning\n"


def test_a_run_that_fails_keeps_its_error(xterm: pytest.MonkeyPatch) -> None:
    def fail(console: Console) -> None:
        with console:
            console.show(fleet())
            raise KeyError

    out = Tty()
    with pytest.raises(KeyError):
        fail(LiveConsole(out))
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1
