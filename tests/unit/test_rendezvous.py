"""torchrun's rendezvous without a port: one machine only, a folder of its user's, and nothing that asks for TCP."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tsugi_cli.launch import supervisor
from tsugi_kpool import world
from tsugi_kpool.errors import ConfigError, MachineError


@pytest.fixture
def parameters():
    from torch.distributed.elastic.rendezvous import RendezvousParameters

    def made(**changes):
        return RendezvousParameters(
            **{"backend": "tsugi", "endpoint": "", "run_id": "none", "min_nodes": 1, "max_nodes": 1} | changes
        )

    return made


@pytest.fixture
def handler(parameters, monkeypatch):
    """As torchrun makes it, by the entry point; the environment is as before afterwards."""
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    for name in ("TSUGI_STORE", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    return lambda **changes: get_rendezvous_handler(parameters(**changes))


def test_torchrun_finds_it_and_workers_meet_in_a_file_that_only_their_user_reaches(handler):
    made = handler()
    found = made.next_rendezvous()
    store = Path(os.environ["TSUGI_STORE"])
    folder = store.parent.stat()
    assert (found.rank, found.world_size) == (0, 1)
    assert (stat.S_IMODE(folder.st_mode), folder.st_uid) == (0o700, os.getuid())
    assert world.worker_rank({"RANK": "1", "WORLD_SIZE": "2", "TSUGI_STORE": str(store)}).store == str(store)
    made.next_rendezvous()
    assert Path(os.environ["TSUGI_STORE"]) != store, "workers that are started again find nothing of those before"


def test_who_asks_torch_for_a_port_gets_none(handler):
    """MASTER_PORT is no number: torch's own TCPStore, which listens on all interfaces, cannot be made of it."""
    made = handler()
    info = made.next_rendezvous().bootstrap_store_info
    assert not made.use_agent_store
    with pytest.raises(ValueError, match=r"tsugi_kpool\.init_process_group"):
        int(info.master_port)


def test_libraries_listen_on_loopback_unless_the_user_has_said_where(handler, monkeypatch):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")
    handler().next_rendezvous()
    assert os.environ["GLOO_SOCKET_IFNAME"].startswith("lo")
    assert os.environ["NCCL_SOCKET_IFNAME"] == "eth7"


def test_jobs_without_an_id_are_told_apart_and_one_with_an_id_keeps_it(handler):
    assert handler().get_run_id() != handler().get_run_id()
    assert handler(run_id="mine").get_run_id() == "mine"


def test_several_machines_are_refused_with_what_to_do(handler):
    with pytest.raises(ConfigError, match=r"--nnodes=2; start one torchrun agent for each replica"):
        handler(max_nodes=2)


def test_workers_that_another_rendezvous_has_started_are_told_how(monkeypatch):
    from tsugi_kpool.engine.rendezvous import file_store

    with pytest.raises(MachineError, match="torchrun --rdzv-backend=tsugi"):
        file_store(world.worker_rank({"RANK": "0", "WORLD_SIZE": "2"}))


def test_an_installation_from_before_it_is_told_to_be_made_again(monkeypatch):
    supervisor.check_rendezvous()
    monkeypatch.setattr(supervisor, "entry_points", lambda **_: ())
    with pytest.raises(MachineError, match="install Tsugi again"):
        supervisor.check_rendezvous()
