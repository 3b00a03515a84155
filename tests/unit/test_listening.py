"""The look at listening sockets that every test with real processes takes: it would see what it is there for."""

from __future__ import annotations

import subprocess
import sys

from tests import listening
from tests.listening import Listener, Watch

PROGRAM = """
import socket, sys
kept = [socket.create_server((host, 0)) for host in ("0.0.0.0", "127.0.0.1")]
kept.append(socket.socket(socket.AF_UNIX))
kept[-1].bind(sys.argv[1])
kept[-1].listen()
print([each.getsockname()[1] for each in kept[:2]], flush=True)
sys.stdin.read()
"""


def test_a_port_on_all_interfaces_is_seen_and_one_on_loopback_allowed(tmp_path):
    path = tmp_path / "socket"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        process.stdout.readline()
        watch = Watch()
        watch.look()
    finally:
        process.communicate("")
    ours = [each for each in watch.found if str(path) in each.command]
    assert [each.address for each in ours if not each.allowed] == ["0.0.0.0"]
    assert {each.address for each in ours} == {"0.0.0.0", "127.0.0.1", str(path)}


def test_an_agent_may_listen_nowhere_and_a_hub_where_it_was_told_to():
    assert not Listener("python -m torch.distributed.run --rdzv-backend=tsugi", "tcp", "127.0.0.1", 1).allowed
    assert not Listener("tsugi hub", "tcp", "10.0.0.7", 51820).allowed
    assert Listener("tsugi hub sideband.bind=10.0.0.7", "tcp", "10.0.0.7", 51820).allowed
    assert not Listener("tsugi hub", "unix", "@somewhere").allowed


def test_a_replica_listens_at_its_machines_address_where_the_network_is_trusted_and_never_at_all_of_them(tmp_path):
    worker = f"python -m tsugi_cli.finetune.worker --run-dir {tmp_path} --replica 1"
    assert not Listener(worker, "tcp", "10.0.0.7", 1).allowed
    (tmp_path / "config.yaml").write_text("topology:\n  trust_network: true\n")
    assert Listener(worker, "tcp", "10.0.0.7", 1).allowed
    assert not Listener(worker, "tcp", "0.0.0.0", 1).allowed


def test_a_process_that_ends_is_nobody_any_more(tmp_path, monkeypatch):
    """Its memory goes first, its sockets a moment later: what it listened at cannot be put down to anybody then."""
    monkeypatch.setattr(listening, "PROC", tmp_path)
    for folder in ("7/fd", "7/net"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "7/fd/3").symlink_to("socket:[1]")
    (tmp_path / "7/net/tcp").write_text("head\n0: 0200CB0A:9A09 00000000:0000 0A 0:0 0:0 0 0 0 1\n")
    for name in ("tcp6", "unix"):
        (tmp_path / "7/net" / name).write_text("head\n")
    for command, addresses in ((b"worker\0", ["10.203.0.2"]), (b"", [])):
        (tmp_path / "7/cmdline").write_bytes(command)
        assert [each.address for each in listening.listeners(7)] == addresses
