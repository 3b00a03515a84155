"""Network namespaces that stand for machines: made as root, or in a user namespace where the system allows it.

A process that reads from a pipe of ours holds each of them open. When we end, in whatever way, the pipe closes, that
process ends, and the kernel removes the namespace with all its devices: nothing has a name, nothing is left.
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
"""Command of the holder: it reports that it runs, then waits until the pipe closes."""
END_S = 10.0


class NoNamespace(Exception):
    """Namespaces cannot be made here; the text says why, in one line."""


class Namespaces:
    """Namespaces as a context manager: `add` makes one, `inside` runs a command in it.

    Args:
        ways: Those to try; only tests leave one out.
    """

    def __init__(self, ways: Sequence[str] = (ROOT, USER)) -> None:
        self._ways = ways
        self.way = ROOT
        """How they are made: as root, or as a user in a user namespace."""
        self._enter: tuple[str, ...] = ()
        self._held: dict[str, subprocess.Popen[bytes]] = {}

    def open(self) -> Self:
        """Find a way to make namespaces.

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
        """Release all. Each ends with the last process in it."""
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
        """Make a namespace, with its loopback device up.

        Raises:
            NoNamespace: it cannot be made.
        """
        self._hold(name, (*self._enter, "unshare", "--net"))
        self.run(name, "ip", "link", "set", "lo", "up")

    def process(self, name: str) -> str:
        """Return the id of a process in it, by which `ip` names a namespace."""
        return str(self._held[name].pid)

    def inside(self, name: str, argv: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the command line that runs there. The process is the command itself, with none between it and its
        parent."""
        user = ("--user", "--preserve-credentials") if self.way == USER else ()
        return (tool("nsenter") or "nsenter", f"--target={self.process(name)}", *user, "--net", "--", *argv)

    def run(self, name: str, *words: str) -> str:
        """Run a short command there, protected from Ctrl-C; returns its output.

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
        """Try a namespace and a device in it: the rights for one do not imply those for the other."""
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
        """Give a namespace up; returns its holder's error output."""
        if (holder := self._held.pop(name, None)) is None:
            return ""
        _, wrong = holder.communicate()
        return " ".join(wrong.decode(errors="replace").split())


def tool(name: str) -> str | None:
    """Return the path of a command: users' search paths often lack the folders of `ip` and `tc`."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))
