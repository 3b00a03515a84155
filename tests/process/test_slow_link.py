"""A real run over a link that turns slow: the replica behind it is named, with the link as cause and its figures.

Two machines are two network namespaces with a virtual cable between them; the test makes them, and its kernel limits
the cable's rate. Nothing outside the two is reached.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.process.test_finetune import TINY, WAIT_S
from tests.process.test_join import run_dir
from tests.process.test_stragglers import named, steps, wait_until
from tsugi_cli.bench.links.namespaces import Namespaces, NoNamespace
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.keys import Role

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

SETTINGS = [*TINY, "train.max_steps=1000000", "kpool.payload=fp32", "topology.here=1"]
HUB, OTHER = "10.203.0.1", "10.203.0.2"
SLOW_LINK = ["rate", "200kbit", "burst", "16kbit", "latency", "400ms"]


class Cable:
    """Two machines, here and there, and the cable between them."""

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces

    def lay(self) -> None:
        made = self._namespaces
        for name in ("here", "there"):
            made.add(name)
        other = ("type", "veth", "peer", "name", "cable", "netns", made.process("there"))
        made.run("here", "ip", "link", "add", "cable", *other)
        for name, address in (("here", HUB), ("there", OTHER)):
            made.run(name, "ip", "addr", "add", f"{address}/24", "dev", "cable")
            made.run(name, "ip", "link", "set", "cable", "up")

    def narrow(self) -> None:
        """From now on, what the other machine sends goes slowly."""
        self._namespaces.run("there", "tc", "qdisc", "add", "dev", "cable", "root", "tbf", *SLOW_LINK)

    def start(self, name: str, *words: str, cwd: Path) -> subprocess.Popen[str]:
        """The command line on a machine, in a directory of its own."""
        cwd.mkdir(exist_ok=True)
        command = self._namespaces.inside(name, [sys.executable, "-m", "tsugi_cli.app", *words])
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=cwd, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def cable() -> Iterator[Cable]:
    with ExitStack() as laid:
        try:
            made = Cable(laid.enter_context(Namespaces()))
            made.lay()
        except NoNamespace as error:
            pytest.skip(str(error))
        yield made


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Ended with the test; those of another namespace have been told by their hub."""
    found: list[subprocess.Popen[str]] = []
    yield found
    for process in [*found, *found]:  # the first signal asks, the second insists
        process.terminate()
    for process in found:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=30)
        process.kill()


@pytest.mark.parametrize("overlap", [pytest.param("false", marks=pytest.mark.nightly), "true"])
def test_a_replica_whose_link_turns_slow_is_named_with_the_link_as_cause(cable, tmp_path, processes, overlap):
    """Without overlap the training thread waits for its rounds; with it nobody waits, and no step is slower."""
    at = [f"sideband.bind={HUB}", f"topology.address={HUB}", f"kpool.overlap={overlap}"]
    at.append("topology.trust_network=true")
    launcher = cable.start("here", "finetune", *SETTINGS, *at, cwd=tmp_path / "here")
    processes.append(launcher)
    run = run_dir(tmp_path / "here", launcher)
    keys = sideband_keys.load(run / "sideband" / "keys.json")
    secret = token.write(keys, Role.MEMBER)
    words = ["join", keys.address, f"topology.address={OTHER}", "--yes", "--token", "-"]
    joined = cable.start("there", *words, cwd=tmp_path / "there")
    processes.append(joined)
    joined.stdin.write(secret + "\n")
    joined.stdin.flush()
    wait_until(lambda: min(steps(run, 0), steps(run, 1)) > 200, launcher)
    cable.narrow()
    wait_until(lambda: named(run, 1, "link", "round trip") is not None, launcher)
    found = named(run, 1, "link", "round trip")
    assert found["part"] == ("round" if overlap == "true" else "sync wait")
    assert found["after_s"] > 2 * found["before_s"]
    assert "(before: " in found["evidence"][0], "its figures, now and before"
    observer = ["sideband", "status", "--addr", keys.address, "--token", token.write(keys, Role.OBSERVER)]
    asked = cable.start("there", *observer, cwd=tmp_path / "there")
    processes.append(asked)
    said, wrong = asked.communicate(timeout=WAIT_S)
    assert asked.returncode == 10, wrong
    assert "cause: link" in " ".join(said.split())
