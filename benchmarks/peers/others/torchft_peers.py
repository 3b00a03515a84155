"""torchft's LocalSGD and DiLoCo: own steps; every eighth is averaged, or given to an outer optimizer (DiLoCo)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import workload
from torchft import Manager, ProcessGroupGloo
from torchft.coordination import LighthouseServer
from torchft.local_sgd import DiLoCo, LocalSGD

EVERY = 8
FAST, SLOW, LINK = 8, 2, 4
"""Steps between two averages where each machine has its own: a fast one's, the straggler's, and how many times more
on a slow link."""
WAIT = timedelta(seconds=30)


class Adapter(torch.nn.Module):
    """The LoRA alone: torchft averages every parameter of the module that it is given."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        super().__init__()
        self.values = torch.nn.ParameterList(parameters)


def local_sgd(run: workload.Run) -> None:
    _train(run, lambda manager, adapter, optimizer: LocalSGD(manager, adapter, optimizer, sync_every=EVERY))


def diloco(run: workload.Run) -> None:
    def method(manager: Manager, adapter: Adapter, optimizer: torch.optim.Optimizer) -> DiLoCo:
        outer = torch.optim.SGD(adapter.parameters(), lr=0.7, momentum=0.9, nesterov=True)
        return DiLoCo(manager, [adapter], optimizer, outer, sync_every=EVERY, pin_memory=False)

    _train(run, method)


def local_sgd_own(run: workload.Run) -> None:
    """As many steps as the machine takes in the time of a fast one's, so that nobody waits long."""
    _train(run, lambda manager, adapter, optimizer: LocalSGD(manager, adapter, optimizer, sync_every=own(run)))


def diloco_own(run: workload.Run) -> None:
    """The same with an outer optimizer, at the rate and momentum of its documentation."""

    def method(manager: Manager, adapter: Adapter, optimizer: torch.optim.Optimizer) -> DiLoCo:
        outer = torch.optim.SGD(adapter.parameters(), lr=0.7, momentum=0.9, nesterov=True)
        return DiLoCo(manager, [adapter], optimizer, outer, sync_every=own(run), pin_memory=False)

    _train(run, method)


def own(run: workload.Run) -> int:
    """Steps of this machine between two averages."""
    return (SLOW if run.slow else FAST) * (LINK if run.job.machines else 1)


def _train(run: workload.Run, method: Any) -> None:
    model = run.lora()
    adapter = Adapter(workload.trainable(model))
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=run.lr)
    lighthouse = None
    if run.rank == 0:
        lighthouse = LighthouseServer(bind=f"{run.address()}:0", min_replicas=run.job.replicas, join_timeout_ms=60000)
        run.post("lighthouse", f"http://{run.address()}:{lighthouse.address().rpartition(':')[2]}")
    store = dist.TCPStore(run.address(), 0, is_master=True, wait_for_workers=False)

    def heal(state: dict[str, Any]) -> None:
        run.notes["healed"] = run.notes.get("healed", 0) + 1
        adapter.load_state_dict(state["adapter"])
        optimizer.load_state_dict(state["optimizer"])

    manager = Manager(
        pg=ProcessGroupGloo(timeout=WAIT),
        load_state_dict=heal,
        state_dict=lambda: {"adapter": adapter.state_dict(), "optimizer": optimizer.state_dict()},
        min_replica_size=run.job.replicas,
        use_async_quorum=False,
        rank=0,
        world_size=1,
        store_addr=run.address(),
        store_port=store.port,
        lighthouse_addr=run.ask("lighthouse"),
        replica_id=f"replica{run.rank}",
        hostname=run.address(),
        timeout=WAIT,
        quorum_timeout=WAIT,
        init_sync=False,
    )
    with method(manager, adapter, optimizer):
        for loss in run.losses(model, model):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
