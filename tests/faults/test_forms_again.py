"""A group that is formed again and again, over the sideband's store, leaves neither file descriptors nor threads."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.support import await_true, hub_plan
from tsugi_kpool.core.messages import Beat
from tsugi_kpool.engine.collective import CollectiveError, GlooGroup
from tsugi_kpool.engine.sideband_store import SidebandStore
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.link import Identity, Link

OWN = Path("/proc/self")
WARM, TIMES = 3, 15
"""benchmarks/chaos forms 1,000."""


def a_beat(replica: int):
    return lambda incarnation: Beat(
        replica, incarnation, 0, 0, 0, "loading", 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, (0,) * 4, 0, False
    )


@pytest.fixture
def links() -> Iterator[list[Link]]:
    hub = HubServer(hub_plan(), RunKeys.generate(), lambda told: None)
    keys = hub.start("127.0.0.1", 0)
    made = [
        Link(keys, Identity(n, "test", 0, "c0ffee", "layout"), a_beat(n), 0.5, 30.0, leases=False) for n in (0, 1)
    ]
    for link in made:
        link.start()
    # The first generation empties the store.
    await_true(lambda: hub.ask(lambda state: state.generation), "the hub's first generation")
    yield made
    for link in made:
        link.stop()
    hub.stop()


def held() -> tuple[int, int]:
    gc.collect()
    return len(list(OWN.joinpath("fd").iterdir())), len(list(OWN.joinpath("task").iterdir()))


@pytest.mark.skipif(not OWN.is_dir(), reason="counts what a process holds in /proc")
def test_groups_that_are_formed_again_leave_nothing(links):
    """One is committed, one is interrupted while a member waits in it, one never forms because nobody else comes."""

    def life(replica: int, number: int) -> None:
        store = SidebandStore(links[replica], f"try{number}/", 20.0)
        group = GlooGroup(store, replica, 2, "127.0.0.1", 20.0)
        payload = torch.full((64,), replica, dtype=torch.uint8)
        assert [int(part[0]) for part in group.gather(payload)] == [0, 1]
        if replica == 0 and number % 3 == 1:
            threading.Timer(0.01, group.interrupt).start()
            with pytest.raises(CollectiveError):
                group.gather(payload)
        elif number % 3 == 1:
            ended.wait(20.0)
        group.close()
        ended.set()

    def alone(number: int) -> None:
        with pytest.raises(CollectiveError):
            GlooGroup(SidebandStore(links[0], f"alone{number}/", 0.05), 0, 2, "127.0.0.1", 0.05)

    counts = []
    with ThreadPoolExecutor(2) as both:
        for number in range(WARM + TIMES):
            ended = threading.Event()
            list(both.map(life, (0, 1), (number, number)))
            if number % 5 == 0:
                alone(number)
            counts.append(held())
    fds, threads = (max(each) for each in zip(*counts[:WARM], strict=True))

    def no_more() -> bool:
        """Threads of gloo's that were told to end may still be there on a busy machine."""
        now = held()
        return now[0] <= fds and now[1] <= threads + 1

    await_true(no_more, f"no more than {fds} files and {threads} threads after {counts}")
