"""Consoles on terminals that resize, break or go away never raise into a run."""

from __future__ import annotations

import os
import re
import sys
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console as Terminal

from tests.pictures import SUMMARY, Tty, event, fleet, xterm
from tsugi_cli.console import Console
from tsugi_cli.consoles import choose
from tsugi_cli.live import LiveConsole
from tsugi_cli.plain import PlainConsole

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


def test_a_run_that_fails_keeps_its_error(xterm: pytest.MonkeyPatch) -> None:
    def fail(console: Console) -> None:
        with console:
            console.show(fleet())
            raise KeyError

    out = Tty()
    with pytest.raises(KeyError):
        fail(LiveConsole(out))
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1
