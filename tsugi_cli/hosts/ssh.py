"""The ssh command that starts `tsugi join` on another machine, and what its end means. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from .machines import Machine

NO_TSUGI = 127
"""Exit code of the shell there when it finds no tsugi."""
OPTIONS = ("-T", *(text for option in (
    "BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=15", "ServerAliveCountMax=4",
) for text in ("-o", option)))  # fmt: skip
"""Nobody is asked for a password, and a connection that was cut without notice is found within a minute."""


def ssh(command: str, where: Machine, script: str) -> tuple[str, ...]:
    """Return the command line that runs a shell script on another machine.

    Args:
        command: `topology.ssh`, such as "ssh -p 2222".
        where: The machine.
        script: For sh, whatever the login shell there is.
    """
    return (*shlex.split(command), *OPTIONS, where.name, f"exec sh -c {shlex.quote(script)}")


def script(words: Sequence[str], folder: str, programs: Sequence[str]) -> str:
    """Return the shell script that runs tsugi on another machine: in the same folder if it is there, and by the first
    of these programs that is.

    Args:
        words: What comes after `tsugi`.
        folder: The folder of this machine.
        programs: Paths or names; ~/ is the home there.
    """
    arguments = shlex.join(words)
    tries = " ".join(_at_home(each) for each in programs)
    looks = f'for t in {tries}; do command -v "$t" >/dev/null 2>&1 && exec "$t" {arguments}; done'
    return f"cd {shlex.quote(folder)} 2>/dev/null; {looks}; exit {NO_TSUGI}"


def _at_home(program: str) -> str:
    """Quote a path for the shell there; its ~ is the home of that machine's user."""
    home = program.startswith("~/")
    return f'"$HOME"/{shlex.quote(program[2:])}' if home else shlex.quote(program)


def words_of_join(replicas: int, own: Sequence[str], insecure: bool) -> list[str]:
    """Return what comes after `tsugi` on another machine. The token comes by standard input.

    Args:
        replicas: How many are to be there.
        own: key=value, for what differs between machines.
        insecure: There are no keys: the address comes in the token's place.
    """
    several = ["--replicas", str(replicas)] if replicas > 1 else []
    return ["join", "-", "--yes", "--plain", *several, *(["--insecure"] if insecure else []), *own]


def reason_of(code: int, words: str, where: Machine) -> str:
    """Return why a machine does not take part, in one line.

    Args:
        code: Exit code of its ssh.
        words: The last lines that it has written.
        where: The machine.
    """
    last = (words.strip().splitlines() or [""])[-1].strip()
    if code == NO_TSUGI:
        return f"{where.name}: there is no tsugi; install it there, or say where it is: topology.remote_tsugi=PATH"
    if code < 0:
        return f"{where.name}: the connection has ended (its ssh was killed by signal {-code})"
    if code == 255:
        hint = f"; try it: ssh {where.name} true" if last else ""
        return f"{where.name}: {last or 'the connection has ended'}{hint}"
    return f"{where.name}: {last or 'no reason is known'} (exit code {code})"
