"""How the library's replicas find each other, and what the Trainer's callback refuses."""

from __future__ import annotations

import dataclasses
import socket
from types import SimpleNamespace

import pytest

from tests.library import config, our_threads, pooled_model, session_of_one
from tsugi_kpool import ConfigError, KPoolCallback, plesio_init
from tsugi_kpool.errors import LaunchError, MachineError, SidebandError
from tsugi_kpool.library import rendezvous
from tsugi_kpool.sideband import keys as key_files
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.world import World, hidden, read


def test_the_world_is_torchruns():
    alone = read(environ={})
    assert (alone.replica, alone.replicas, alone.one_machine) == (0, 1, True)
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node0"}
    world = read(environ=torchrun)
    assert (world.replica, world.replicas, world.local_replica, world.one_machine) == (3, 4, 1, False)
    assert rendezvous.hub_host(world, "tcp://0.0.0.0:1") == "node0"
    assert rendezvous.hub_host(world, "tcp://10.0.0.7:1") == "10.0.0.7"
    assert rendezvous.hub_host(read(environ={"WORLD_SIZE": "2"}), "tcp://0.0.0.0:1") == "127.0.0.1"
    assert (read(1, 2, {}).replica, read(1, 2, torchrun).replicas) == (1, 2)


@pytest.mark.parametrize("given", [(0, None), (None, 2), (2, 2), (-1, 2), (0, 0), ("0", 2), (0, 2.0), (True, 2)])
def test_a_place_that_does_not_exist_is_refused(given):
    with pytest.raises(ConfigError, match="replica"):
        read(*given, {})


def test_hidden_variables_come_back(monkeypatch):
    import os

    monkeypatch.setenv("WORLD_SIZE", "2")
    with hidden():
        assert "WORLD_SIZE" not in os.environ
    assert os.environ["WORLD_SIZE"] == "2"


def test_the_key_folder_is_ours_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = rendezvous.key_file(World(run="a"))
    assert path != rendezvous.key_file(World(run="b"))
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.parent.chmod(0o755)
    with pytest.raises(MachineError, match="only you can enter"):
        rendezvous.key_file(World())


def test_a_file_that_an_earlier_run_left_is_not_believed(tmp_path):
    path = tmp_path / "keys"
    with pytest.raises(LaunchError, match="no such file"):
        rendezvous.find_hub(path, "127.0.0.1", "tcp://127.0.0.1:0", 0.3)
    key_files.save(dataclasses.replace(RunKeys.generate(), address="tcp://127.0.0.1:9"), path)
    with pytest.raises(LaunchError, match="no hub answers"):
        rendezvous.find_hub(path, "127.0.0.1", "tcp://127.0.0.1:0", 0.5)
    path.chmod(0o644)
    with pytest.raises(SidebandError, match="0600"):
        rendezvous.find_hub(path, "127.0.0.1", "tcp://127.0.0.1:0", 9.0)


def test_a_port_in_use_is_said_so(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = config(sideband_addr=f"tcp://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(MachineError, match="cannot listen"):
            plesio_init(pooled_model(busy), busy, replica=0, replicas=2, keys=tmp_path / "keys")
    assert our_threads() == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"world_size": 2}, "use_configured_state"),
        ({"n_gpu": 8}, "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_the_callback_refuses_what_cannot_work(changes, text):
    usual = {"world_size": 1, "n_gpu": 0}
    callback = KPoolCallback(config(), replica=0, replicas=2)
    callback.on_init_end(SimpleNamespace(**usual), None, None)
    with pytest.raises(ConfigError, match=text):
        callback.on_init_end(SimpleNamespace(**{**usual, **changes}), None, None)
    KPoolCallback(config(), replica=0, replicas=1).on_init_end(SimpleNamespace(**{**usual, **changes}), None, None)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_a_fleet_meets_over_ipv6(tmp_path):
    settings = config(sideband_addr="tcp://[::1]:0")
    with session_of_one(tmp_path / "keys", pooled_model(settings), settings, settings.sideband_addr):
        keys = key_files.load(tmp_path / "keys")
        assert keys.address.startswith("tcp://[::1]:")
        assert rendezvous.find_hub(tmp_path / "keys", "::1", settings.sideband_addr, 60.0).address == keys.address


@pytest.mark.parametrize(
    ("address", "host"), [("tcp://[fd00::7]:51820", "fd00::7"), ("tcp://10.0.0.7:51820", "10.0.0.7")]
)
def test_addresses_of_both_kinds(address, host):
    assert rendezvous.split(address) == (host, 51820)
    assert rendezvous.joined(host, 51820) == address
    assert config(sideband_addr=address).sideband_addr == address
    assert rendezvous.bindable(address) == (host, 51820)


@pytest.mark.parametrize("wrong", ["tcp://fd00::7:51820", "tcp://[here]:51820", "tcp://[::1]"])
def test_an_address_of_neither_kind_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"must have the form tcp://host:port or tcp://\[IPv6\]:port"):
        config(sideband_addr=wrong)
