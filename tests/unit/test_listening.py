"""The look at listening sockets that every test with real processes takes: it would see what it is there for."""

from __future__ import annotations

import subprocess
import sys

from tests.listening import Listener, Watch, listeners

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


def test_a_process_that_is_ending_is_nobody(tmp_path, monkeypatch):
    """Its command has gone with its memory, and with that what it was allowed; its sockets go a moment later."""
    folder = tmp_path / "7"
    (folder / "fd").mkdir(parents=True)
    (folder / "net").mkdir()
    (folder / "fd" / "3").symlink_to("socket:[42]")
    line = " 0: 0200CB0A:9289 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 42 1"
    for table, lines in (("tcp", f"header\n{line}\n"), ("tcp6", "header\n"), ("unix", "header\n")):
        (folder / "net" / table).write_text(lines)
    monkeypatch.setattr("tests.listening.PROC", tmp_path)
    for command, seen in ((b"tsugi\0hub", 1), (b"", 0)):
        (folder / "cmdline").write_bytes(command)
        assert len(list(listeners(7))) == seen
