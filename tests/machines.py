"""Machines of a test: network namespaces with addresses, folders and homes of their own, on one network.

Nothing outside of it is reached, and nothing of it stays.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import psutil

from tests.process.test_finetune import WAIT_S
from tests.support import await_true
from tsugi_cli.bench.links.namespaces import Namespaces, NoNamespace
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.keys import Role

ROOT = Path(__file__).resolve().parent.parent
NETWORK, BRIDGE, DEVICE = "network", "bridge", "wan"
END_S, INSISTS_S = 30.0, 2.0
WRONG_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
#include <sys/time.h>
#define AHEAD 86400
int clock_gettime(clockid_t id, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(id, at);
    if (!code && id == CLOCK_REALTIME) at->tv_sec += AHEAD;
    return code;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""


class Machines:
    """Machines that share a network. As a context manager it ends what was started on them.

    Args:
        root: Each machine has a folder of its name there, with its home in it.

    Raises:
        NoNamespace: on entry, where the kernel or this user cannot make any.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._made = root, Namespaces()
        self._started: list[subprocess.Popen[str]] = []
        self._hosts: dict[str, Path] = {}

    def __enter__(self) -> Self:
        self._made.open()
        try:
            self._made.add(NETWORK)
            self.run(NETWORK, "ip", "link", "add", BRIDGE, "type", "bridge")
            self.run(NETWORK, "ip", "link", "set", BRIDGE, "up")
        except NoNamespace:
            self._made.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """The first signal asks, the second insists: not at once, or a process that is busy sees one of them."""
        for process in self._started:
            process.terminate()
        for process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=INSISTS_S)
            process.terminate()
        for process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=END_S)
            process.kill()
        self._made.close()

    def plug(self, name: str, *addresses: str) -> None:
        """Make a machine with these addresses in the network."""
        self._made.add(name)
        self._lay(NETWORK, port(name), name, DEVICE)
        self.run(NETWORK, "ip", "link", "set", port(name), "master", BRIDGE, "up")
        self.give(name, DEVICE, *addresses)

    def behind(self, name: str, own: str, router: str, inside: str) -> None:
        """Make a machine behind a router (NAT) that lets nobody in.

        Args:
            name: Of the machine.
            own: Its address.
            router: Address of its router in the network.
            inside: Address of its router for it.
        """
        gate = f"{name}-router"
        self.plug(gate, router)
        self._made.add(name)
        self._lay(name, DEVICE, gate, "lan")
        self.give(gate, "lan", inside)
        self.give(name, DEVICE, own)
        self.run(name, "ip", "route", "add", "default", "via", inside)
        self.tables(gate, "masquerade", DEVICE)
        self.tables(name, "only")

    def give(self, name: str, device: str, *addresses: str) -> None:
        """Give a device addresses, and switch it on."""
        for each in addresses:
            width = ["64", "nodad"] if ":" in each else ["24"]
            self.run(name, "ip", "addr", "add", f"{each}/{width[0]}", "dev", device, *width[1:])
        self.run(name, "ip", "link", "set", device, "up")

    def tables(self, name: str, *words: str) -> None:
        """Lay down what passes a machine: the words of `tests.nat`."""
        command = self._made.inside(name, [sys.executable, "-m", "tests.nat", *words])
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoNamespace(done.stderr.strip())

    def _lay(self, near: str, device: str, far: str, other: str) -> None:
        """Lay a cable between two machines."""
        ends = (device, "type", "veth", "peer", "name", other, "netns", self._made.process(far))
        self.run(near, "ip", "link", "add", *ends)

    def run(self, name: str, *words: str) -> str:
        """Run a short command on a machine; returns its output."""
        return self._made.run(name, *words)

    def cut(self, name: str) -> None:
        """Pull a machine's plug out."""
        self.run(NETWORK, "ip", "link", "set", port(name), "down")

    def heal(self, name: str) -> None:
        """Put it in again."""
        self.run(NETWORK, "ip", "link", "set", port(name), "up")

    def names(self, name: str, address: str, known: str) -> None:
        """From now on what is started on a machine finds this address under that name."""
        self._hosts[name] = self._root / f"{name}.hosts"
        self._hosts[name].write_text(f"127.0.0.1 localhost\n{address} {known}\n")

    def start(
        self, name: str, *words: str, variables: Mapping[str, str] | None = None, anew: bool = False
    ) -> subprocess.Popen[str]:
        """Start the command line on a machine, in its folder; `anew`: not forked."""
        command = [sys.executable, "-m", "tsugi_cli.app", *words]
        if name in self._hosts:
            mount = f'mount --bind {self._hosts[name]} /etc/hosts && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", mount, "sh", *command]
        return self.execute(name, *(["env"] if anew else []), *command, variables=variables)

    def execute(self, name: str, *argv: str, variables: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start any command on a machine, in its folder."""
        home = self.folder(name) / "home"
        home.mkdir(parents=True, exist_ok=True)
        environ = {**os.environ, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), **(variables or {})}
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            self._made.inside(name, argv),
            cwd=self.folder(name), env=environ, stdin=pipe, stdout=pipe, stderr=pipe, text=True,
        )  # fmt: skip
        self._started.append(process)
        return process

    def folder(self, name: str) -> Path:
        """Return a machine's folder: where its commands run."""
        return self._root / name

    def run_of(self, name: str, process: subprocess.Popen[str]) -> Path:
        """Return the directory of the run that a hub on a machine serves, once it listens."""
        keys = self.folder(name) / "runs" / "latest" / "sideband" / "keys.json"
        await_true(lambda: keys.exists() or process.poll() is not None, "the hub's keys", WAIT_S)
        assert keys.exists(), process.communicate()
        return (self.folder(name) / "runs" / "latest").resolve()


def port(name: str) -> str:
    """Return the network's end of a machine's cable."""
    return f"to-{name}"  # the system takes 15 characters, and "a" for the word "address"


def member_token(run: Path, *further: str) -> str:
    """Return the token of a run that joiners are given, with the hub's address in it."""
    return token.write(sideband_keys.load(run / "sideband" / "keys.json"), Role.MEMBER, True, further)


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a process's end; returns what it has said."""
    said, wrong = process.communicate(timeout=WAIT_S)
    assert process.returncode == code, f"{said[-3000:]}\n{wrong[-3000:]}"
    return said


def exchanges(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the exchange's process of a launcher."""
    children = psutil.Process(launcher.pid).children(recursive=True)
    return [each for each in children if "tsugi_kpool.exchange.process" in _words(each)]


def _words(process: psutil.Process) -> list[str]:
    """Its command line; none when it has ended meanwhile."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def clock_ahead(folder: Path) -> Path:
    """Return a library for LD_PRELOAD that sets a process's clock a day ahead. A test is skipped where none can be
    made."""
    import pytest

    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(WRONG_CLOCK)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, timeout=60)
    return library


def made(root: Path) -> Iterator[Machines]:
    """Yield machines; for a fixture. A test is skipped where there can be none."""
    import pytest

    with contextlib.ExitStack() as opened:
        try:
            machines = opened.enter_context(Machines(root))
        except NoNamespace as error:
            pytest.skip(str(error))
        yield machines
