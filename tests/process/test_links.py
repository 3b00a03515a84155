"""Links of `tsugi bench` as they are laid: what a program sees of them, and that nothing of them stays."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import psutil
import pytest

from tests.process.test_finetune import TINY, WAIT_S, start
from tests.support import await_true
from tsugi_cli.bench.links.hosts import Cables
from tsugi_cli.bench.links.namespaces import ROOT, USER, Namespaces, NoNamespace
from tsugi_cli.bench.spec import read

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

HOLD = """
import sys
from tsugi_cli.bench.links.namespaces import Namespaces
with Namespaces() as made:
    made.add("machine")
    print(made.process("machine"), flush=True)
    sys.stdin.read()
"""
TALK = """
import socket, sys, time
with socket.socket(type=socket.SOCK_DGRAM) as talker:
    while True:
        talker.sendto(b"x", (sys.argv[1], 9))
        time.sleep(0.003)
"""


@pytest.fixture(params=[ROOT, pytest.param(USER, marks=pytest.mark.nightly)])
def namespaces(request) -> Iterator[Namespaces]:
    """Made as root, and as anybody else may."""
    made = Namespaces([request.param])
    try:
        made.open()
    except NoNamespace as error:
        pytest.skip(str(error))
    yield made
    made.close()


def place(process: int) -> str:
    """The network namespace of a process."""
    return os.readlink(f"/proc/{process}/ns/net")  # noqa: PTH115


def places_of(processes: list[psutil.Process]) -> set[str]:
    """Their network namespaces."""
    found = set()
    for each in processes:
        with suppress(OSError):  # it has ended meanwhile
            found.add(place(each.pid))
    return found


def anybody_in(places: set[str]) -> list[int]:
    """Who is in one of these namespaces."""
    found = []
    for entry in psutil.pids():
        with suppress(OSError):
            if place(entry) in places:
                found.append(entry)
    return found


def test_a_link_is_as_slow_and_as_late_as_its_scenario_says(namespaces):
    link = [f"bench.scenario.{each}" for each in ("delay_ms=10", "delay_jitter_ms=1", "mbit_s=8")]
    with ExitStack() as laid:
        cables = Cables(read(["bench.scenario=slow_link", *link]).scenario, 2, namespaces)
        laid.callback(cables.tear)
        cables.lay()
        found = cables.measured()
        counted = cables.counted()
    assert found["made_as"] == namespaces.way
    assert found["rtt_ms_measured"] >= 40.0, "two links, there and back"
    assert found["mbit_s_set"] / 10 < found["mbit_s_measured"] < found["mbit_s_set"] * 2
    assert counted["packets_lost"] == 0
    assert counted["packets_carried"] > 500


def test_as_many_packets_get_lost_between_racks_as_the_seed_says(namespaces):
    link = ["bench.scenario=cross_rack", "bench.scenario.loss=0.2", "bench.scenario.delay_ms=5"]
    with ExitStack() as laid:
        cables = Cables(read(link).scenario, 2, namespaces)
        laid.callback(cables.tear)
        cables.lay()
        talker = subprocess.Popen(cables.inside(0, [sys.executable, "-c", TALK, cables.address(1)]))
        laid.callback(talker.wait)
        laid.callback(talker.kill)
        await_true(lambda: cables.counted()["packets_carried"] > 100, "packets", WAIT_S)
        lanes = cables.wire.counted().lanes
    for number, lane in enumerate(lanes):
        lot = random.Random(f"0 {number}")
        lost = sum(lot.random() < 0.2 for _ in range(sum(lane.values())))
        assert lane.get("lost", 0) == lost
    assert lanes[0]["lost"] > 0


def test_namespaces_go_with_their_owner_even_when_it_is_killed():
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    said = owner.stdout.readline()
    if not said:
        pytest.skip(owner.communicate()[1].splitlines()[-1])
    holder = int(said)
    places = {place(holder)}
    assert holder in anybody_in(places)
    owner.kill()
    owner.communicate()
    await_true(lambda: not anybody_in(places), "nobody is there any more", WAIT_S)


@pytest.mark.nightly
def test_ctrl_c_leaves_no_namespace_and_no_process(tmp_path):
    settings = ["bench.scenario=cross_region", "bench.methods=[kpool]", "bench.seeds=[0]", "bench.lr_scales=[1]"]
    process = start("bench", *TINY, *settings, "topology.replicas=2", "--plain", cwd=tmp_path)
    folder = tmp_path / "runs" / "latest-bench"
    try:
        deadline_s = time.monotonic() + WAIT_S
        while not (folder / "links.json").exists():
            if process.poll() is not None:
                said = process.communicate()[1]
                assert process.returncode == 4, said
                pytest.skip(said)
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        places = places_of(psutil.Process(process.pid).children(recursive=True)) - {place(os.getpid())}
        assert len(places) >= 3, "two replicas and a switch"
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 130, process.communicate()
    finally:
        process.kill()
        process.communicate()
    await_true(lambda: not anybody_in(places), "nobody is there any more", WAIT_S)


def test_where_no_namespace_may_be_made_the_benchmark_says_so_and_ends_with_4(tmp_path):
    """In a user namespace that allows no more network namespaces."""
    may_none = 'echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"'
    within = ["unshare", "--user", "--map-root-user", "sh", "-c", may_none, "sh"]
    if subprocess.run([*within, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may make no user namespace")
    words = ["bench", *TINY, "bench.scenario=slow_link", "topology.replicas=2"]
    command = [*within, sys.executable, "-m", "tsugi_cli.app", *words]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert result.returncode == 4, result.stderr
    said = result.stderr.strip().splitlines()
    assert len(said) == 1, result.stderr
    assert "bench.scenario.link=each needs network namespaces" in said[0]
