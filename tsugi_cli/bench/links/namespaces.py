"""Network namespaces that stand for machines: made as root, or in a user namespace by anybody whom the system lets.

Each is held open by a process that reads from a pipe of ours. When we end, however we end, the pipe closes, that
process ends, and the kernel removes the namespace with every device in it: nothing has a name, nothing is left.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Self

from tsugi_cli.signals import deaf

ROOT, USER = "root", "user namespace"
TOOLS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}
HOLD = ("sh", "-c", "echo; exec cat >/dev/null")
"""Says that it is there, then waits until nobody can write to it any more."""
END_S = 10.0


class NoNamespace(Exception):
    """This user or this system can make none; the text says why, in one line."""


class Namespaces:
    """A context manager; `add` makes a namespace, `inside` is how a command is run in it.

    Args:
        ways: Those to try; only tests leave one out.
    """

    def __init__(self, ways: Sequence[str] = (ROOT, USER)) -> None:
        self._ways = ways
        self.way = ROOT
        """Whose rights they are made with: those of root, or those of a user in a namespace of their own."""
        self._enter: tuple[str, ...] = ()
        self._held: dict[str, subprocess.Popen[bytes]] = {}

    def open(self) -> Self:
        """Find a way.

        Raises:
            NoNamespace: there is none.
        """
        if missing := [name for name in TOOLS if tool(name) is None]:
            packages = sorted({TOOLS[name] for name in missing})
            raise NoNamespace(f"there is no command {' or '.join(missing)} ({', '.join(packages)})")
        refused = "this user is not root"
        if os.geteuid() == 0 and ROOT in self._ways:
            try:
                return self._tried()
            except NoNamespace as error:
                refused = f"root may make none ({error})"
        if USER not in self._ways:
            raise NoNamespace(refused)
        self.way = USER
        try:
            self._hold(USER, ("unshare", "--user", "--map-root-user", "--net"))
            self._enter = ("nsenter", f"--target={self._held[USER].pid}", "--user", "--preserve-credentials")
            return self._tried()
        except NoNamespace as error:
            self.close()
            raise NoNamespace(
                f"{refused}, and the system lets it make no user namespace ({error}): see the settings "
                "user.max_user_namespaces, kernel.unprivileged_userns_clone, "
                "kernel.apparmor_restrict_unprivileged_userns, or a container's seccomp profile"
            ) from error

    def close(self) -> None:
        """Let go of all. They end with the last process that runs in them."""
        for holder in reversed(self._held.values()):
            try:
                holder.communicate(timeout=END_S)  # closes the pipe
            except subprocess.TimeoutExpired:
                holder.kill()
                holder.communicate()
        self._held.clear()
        self._enter = ()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, name: str) -> None:
        """Make a namespace, its loopback device up.

        Raises:
            NoNamespace: it cannot be made.
        """
        self._hold(name, (*self._enter, "unshare", "--net"))
        self.run(name, "ip", "link", "set", "lo", "up")

    def process(self, name: str) -> str:
        """Id of a process in it: how `ip` is told which one is meant."""
        return str(self._held[name].pid)

    def inside(self, name: str, argv: Sequence[str] = ()) -> tuple[str, ...]:
        """The command line that runs there. The process is the command itself, none between it and its parent."""
        user = ("--user", "--preserve-credentials") if self.way == USER else ()
        return (tool("nsenter") or "nsenter", f"--target={self.process(name)}", *user, "--net", "--", *argv)

    def run(self, name: str, *words: str) -> str:
        """Run a short command there, unmoved by Ctrl-C; returns what it says.

        Raises:
            NoNamespace: it failed.
        """
        command = (tool(words[0]) or words[0], *words[1:])
        result = subprocess.run(
            self.inside(name, command), capture_output=True, text=True, start_new_session=True, check=False
        )
        if result.returncode:
            raise NoNamespace(f"{' '.join(words)}: {' '.join(result.stderr.split())}")
        return result.stdout

    def _tried(self) -> Self:
        """Rights may be there for a namespace, and not for a device in it."""
        try:
            self.add("")
            self.run("", "ip", "link", "add", "trial", "type", "veth", "peer", "name", "trial-end")
            return self
        finally:
            self._drop("")

    def _hold(self, name: str, made_by: Sequence[str]) -> None:
        command = [tool(made_by[0]) or made_by[0], *made_by[1:], *HOLD]
        pipe = subprocess.PIPE
        with deaf():
            holder = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        self._held[name] = holder
        if not (holder.stdout and holder.stdout.readline()):
            raise NoNamespace(self._drop(name) or f"{made_by[0]} failed")

    def _drop(self, name: str) -> str:
        """Give a namespace up; returns what its holder has complained of."""
        if (holder := self._held.pop(name, None)) is None:
            return ""
        _, wrong = holder.communicate()
        return " ".join(wrong.decode(errors="replace").split())


def tool(name: str) -> str | None:
    """Where a command is: users' search paths often lack the folders that hold `ip` and `tc`."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))
