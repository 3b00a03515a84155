"""A real run over a link that turns slow: the replica behind it is named, with the link as cause and its figures.

Two machines are two network namespaces with a virtual cable between them; the test makes them, and its kernel limits
the cable's rate. Nothing outside the two is reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machines import DEVICE, Machines, ended, made, member_token
from tests.process.test_finetune import TINY
from tests.process.test_stragglers import slow, steps, wait_until
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.keys import Role

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

SETTINGS = [*TINY, "train.max_steps=1000000", "kpool.payload=fp32", "topology.here=1"]
HUB, OTHER = "10.203.0.1", "10.203.0.2"
SLOW_LINK = ["rate", "200kbit", "burst", "16kbit", "latency", "400ms"]


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    yield from made(tmp_path)


def of_link(run: Path, part: str) -> list[dict]:
    """The times that replica 1 was named for its link, and as slow in this part of its time."""
    return [e for e in slow(run, 1) if (e["cause"], e["part"]) == ("link", part) and "round trip" in e["evidence"][0]]


@pytest.mark.parametrize("overlap", [pytest.param("false", marks=pytest.mark.nightly), "true"])
def test_a_replica_whose_link_turns_slow_is_named_with_the_link_as_cause(machines, overlap):
    """Without overlap the training thread waits for its rounds; with it nobody waits, and no step is slower."""
    at = [f"sideband.bind={HUB}", f"topology.address={HUB}", f"kpool.overlap={overlap}"]
    at.append("topology.trust_network=true")
    machines.plug("here", HUB)
    machines.plug("there", OTHER)
    launcher = machines.start("here", "finetune", *SETTINGS, *at)
    run = machines.run_of("here", launcher)
    keys = sideband_keys.load(run / "sideband" / "keys.json")
    machines.start("there", "join", member_token(run), f"topology.address={OTHER}", "--yes")
    wait_until(lambda: min(steps(run, 0), steps(run, 1)) > 200, launcher)
    machines.run("there", "tc", "qdisc", "add", "dev", DEVICE, "root", "tbf", *SLOW_LINK)
    part = "round" if overlap == "true" else "sync wait"
    # Without overlap the link may show first: it is named by its rounds until what they hold up is known.
    wait_until(lambda: bool(of_link(run, part)), launcher)
    found = of_link(run, part)[0]
    assert found["after_s"] > 2 * found["before_s"]
    assert "(before: " in found["evidence"][0], "its figures, now and before"
    observer = ["sideband", "status", "--addr", keys.address, "--token", token.write(keys, Role.OBSERVER)]
    said = ended(machines.start("there", *observer), code=10)
    assert "cause: link" in " ".join(said.split())
