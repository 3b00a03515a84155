"""The rendezvous of one torchrun agent's workers without a port: in a file that only their user can open.

torchrun's own rendezvous backends open a TCPStore. It listens on all interfaces and asks for no key, and the agent
unpickles its content: whoever reaches that port runs code as the user. Here the agent keeps its state in memory, and
the workers of its machine meet in a `FileStore` inside a folder of mode 0700.

    torchrun --rdzv-backend=tsugi --nproc-per-node 2 train.py

torch finds the backend by the entry point `torchrun.handlers`, and imports this module whenever it starts an agent,
while its own rendezvous package is half imported: nothing of that package may be imported at the top. Workers that
want a process group call `tsugi_kpool.init_process_group`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch._C._distributed_c10d import FileStore, Store

from tsugi_kpool import world
from tsugi_kpool.errors import MachineError

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters
NO_STORE = (
    "the workers of this replica have no place to meet: start them with torchrun --rdzv-backend=tsugi "
    "(torchrun's own backends open a port that asks nobody for a key)"
)


def torchrun_backend() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """Return the function that makes an agent's handler. The entry point names this one."""
    return _create


def _create(parameters: RendezvousParameters) -> RendezvousHandler:
    from .agent import FileRendezvous

    return FileRendezvous(parameters)


def file_store(seat: world.WorkerRank) -> Store:
    """Return the store in which the workers of a replica meet.

    Raises:
        MachineError: our torchrun agent has made none.
    """
    if seat.store is None:
        raise MachineError(NO_STORE)
    return FileStore(seat.store, seat.workers)
