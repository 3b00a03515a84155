"""The rendezvous of a torchrun agent that is alone on its machine: no port, no key to guess, nothing unpickled."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import uuid
from pathlib import Path

from torch._C._distributed_c10d import HashStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)

from tsugi_kpool.errors import ConfigError
from tsugi_kpool.world import STORE

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
"""Variables that choose where torch's communication libraries listen. Workers of one agent share a machine: loopback
will do."""
INSTEAD = "start one torchrun agent for each replica (TSUGI_REPLICA, TSUGI_REPLICAS)"
NO_PORT = "none: call tsugi_kpool.init_process_group instead of torch.distributed's"
"""Value of MASTER_PORT. A loop that asks for torch's default, a TCPStore on all interfaces, fails with this text."""
BACKEND = "tsugi"
"""Name of the backend in torchrun's option --rdzv-backend."""


class FileRendezvous(RendezvousHandler):
    """The rendezvous of one agent: a new file for its workers each time it starts them.

    Raises:
        ConfigError: the agent is to be one of several, which would need a port.
    """

    def __init__(self, parameters: RendezvousParameters) -> None:
        if parameters.max_nodes != 1:
            found = f"--nnodes={parameters.max_nodes}"
            raise ConfigError(
                [f"--rdzv-backend={BACKEND} is for the workers of one machine, found {found}; {INSTEAD}"]
            )
        # Two jobs on one machine must not be taken for one; torchrun's own default is "none" for all.
        self._run_id = parameters.run_id if parameters.run_id not in ("", "none") else f"tsugi-{uuid.uuid4().hex}"
        self._folder = _private_folder(parameters.endpoint)
        self._closed = False

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        """Always false: workers would reach such a store over a port."""
        return False

    def next_rendezvous(self) -> RendezvousInfo:
        # The agent hands its environment on to its workers.
        os.environ[STORE] = str(self._folder / f"{uuid.uuid4().hex}.store")
        for name in INTERFACES:
            os.environ.setdefault(name, LOOPBACK)
        nowhere = RendezvousStoreInfo("127.0.0.1", NO_PORT)  # type: ignore[arg-type]
        return RendezvousInfo(HashStore(), 0, 1, nowhere)

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        self._closed = True

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        self._closed = True
        return True


def _private_folder(parent: str) -> Path:
    """Make a folder of mode 0700 that is deleted when the agent ends."""
    folder = Path(tempfile.mkdtemp(prefix="tsugi-", dir=parent or None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
