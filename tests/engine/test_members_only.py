"""A stranger who connects while a group forms: found by all members, who form the group again without him."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from tsugi_kpool.core.messages import Generation
from tsugi_kpool.engine import collective, members_only, membership
from tsugi_kpool.engine.collective import CollectiveError
from tsugi_kpool.engine.membership import gloo_groups
from tsugi_kpool.engine.network import LOOPBACK, Network
from tsugi_kpool.errors import ConfigError

FORM_S = 8.0
EPOCHS = 4
"""As many as a hub orders in a row."""


class StoreLink:
    """The rendezvous of an uplink, in this process. Whoever listens to `published` acts before the others read it."""

    def __init__(self, store: HashStore, published=lambda key: None) -> None:
        self._store, self._published = store, published

    def store_put(self, key: str, value: bytes) -> None:
        self._published(key)
        self._store.set(key, value)

    def store_get(self, key: str, timeout_s: float) -> bytes | None:
        del timeout_s
        return self._store.get(key) if self._store.check([key]) else None


STRANGER = """
import contextlib, socket, struct, sys
kept = []
print("here", flush=True)
for line in sys.stdin:
    for port in map(int, line.split()):
        for word in range(4):
            with contextlib.suppress(OSError):
                kept.append(socket.create_connection(("127.0.0.1", port), timeout=5))
                if sys.argv[1] == "speaks":
                    kept[-1].sendall(struct.pack("<q", word))
    print("there", flush=True)
"""
"""Another process: connects to the ports that it is told, and says the eight bytes for which gloo would take it."""


class Stranger:
    """Comes when rank 0 has told where it listens, and before rank 1 can have read it.

    Args:
        times: How often.
        silent: It says nothing at all.
    """

    def __init__(self, times: int, silent: bool = False) -> None:
        self._left = times
        self._process = subprocess.Popen(
            [sys.executable, "-c", STRANGER, "silent" if silent else "speaks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        # Its interpreter may take longer to start than a group has to form.
        assert self._process.stdout.readline() == "here\n"

    def come(self, key: str) -> None:
        if self._left and "connections" not in key:
            self._left -= 1
            self._process.stdin.write(" ".join(map(str, listening())) + "\n")
            self._process.stdin.flush()
            assert self._process.stdout.readline() == "there\n"

    def leave(self) -> None:
        self._process.communicate(timeout=100)


def listening() -> Iterator[int]:
    """Ports on loopback at which this process listens."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(int(entry.name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as copy:
                if copy.family == socket.AF_INET and copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    yield copy.getsockname()[1]


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(collective, "FORM_S", 3.0)
    monkeypatch.setattr(membership, "FORM_S", 3.0)


def form(stranger: Stranger, network: Network = LOOPBACK) -> list:
    """Two members in two threads; each one's sum over the group, or what it met.

    When one says that its group did not form, another generation is ordered for both, as a hub does, three times.
    """
    store, found, newest = HashStore(), [None, None], [1]

    def member(rank: int) -> None:
        link = StoreLink(store, stranger.come if rank == 0 else lambda key: None)
        make = gloo_groups(link, rank, network, FORM_S, lambda generation: newest[0] > generation)
        generation = 0
        while generation < min(newest[0], EPOCHS):
            generation = newest[0]
            try:
                group = make(Generation(generation=generation, members=(0, 1), version=0))
                parts = group.gather(torch.tensor([rank + 1], dtype=torch.uint8))
                found[rank] = int(torch.stack(parts).sum())
                group.close()
                return
            except CollectiveError as error:
                found[rank], newest[0] = error, max(newest[0], generation + 1)
            except Exception as error:  # noqa: BLE001  (judged by the test)
                found[rank], newest[0] = error, EPOCHS + 1

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(12 * FORM_S)
        assert not each.is_alive()
    stranger.leave()
    return found


def test_who_connects_while_a_group_forms_takes_nobodys_place(short):
    """Both threads share a process here, so that the stranger finds the ports of both members."""
    assert form(Stranger(times=1)) == [3, 3]


def test_strangers_who_connect_and_say_nothing_are_shown_out_and_cost_no_try(short, monkeypatch):
    """As scanners do, or whoever wants to keep a run from forming: connecting alone ends no run."""
    tries: list[int] = []
    original = membership.members_only

    def counted(begin, *rest):
        return original(lambda attempt: tries.append(attempt) or begin(attempt), *rest)

    monkeypatch.setattr(membership, "members_only", counted)
    assert form(Stranger(times=100, silent=True)) == [3, 3]
    assert tries == [0, 0]


def test_a_stranger_who_never_leaves_them_alone_ends_the_try_on_both(short):
    """Not a hang until a collective's deadline, and no result with the stranger in it."""
    first, second = form(Stranger(times=100))
    assert isinstance(first, CollectiveError)
    assert isinstance(second, CollectiveError)


def test_between_machines_only_a_network_that_is_said_to_be_trusted_will_do():
    with pytest.raises(ConfigError, match=r"listen to each other at 10\.0\.0\.7"):
        Network("10.0.0.7")
    assert not Network("10.0.0.7", trusted=True).loopback
    assert Network("127.0.0.3").loopback


def test_a_system_that_hides_our_sockets_is_no_reason_to_trust(monkeypatch):
    """Nothing is assumed where nothing can be seen."""
    monkeypatch.setattr("tsugi_kpool.system.DESCRIPTORS", ())
    found = form(Stranger(times=0))
    # The first one that says so goes, and the other may find it gone before it can look itself.
    assert all(isinstance(each, Exception) for each in found)
    assert any("does not show a process its own sockets" in str(each) for each in found)


def test_every_try_that_failed_is_let_go_of():
    closed: list[int] = []
    with pytest.raises(ConnectionError, match="5 times in a row: somebody"):
        members_only.members_only(lambda attempt: attempt, lambda *_: "somebody", closed.append)
    assert closed == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("value", [b"", b"x" * 300, (2**40).to_bytes(8, "little") + b"x" * 162])
def test_what_is_no_address_never_reaches_gloo(short, value):
    """Gloo believes the lengths that a member names: it would reserve that memory, or read beyond its end."""
    store = HashStore()

    class Liar(StoreLink):
        def store_get(self, key: str, timeout_s: float) -> bytes | None:
            return value if key.endswith("/1") else super().store_get(key, timeout_s)

    make = gloo_groups(Liar(store), 0, LOOPBACK, FORM_S, lambda generation: False)
    with pytest.raises(CollectiveError, match="is no address of gloo's"):
        make(Generation(generation=1, members=(0, 1), version=0))
