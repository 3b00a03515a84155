"""The run directory's disk is full from some moment on: training goes on, nothing is torn, nothing silently lost."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.faults.disk import Disk, NoDisk, ended_elsewhere, once
from tests.faults.fleet import TINY, Fleet
from tests.faults.injector import Injector
from tests.faults.points import Fault, Kind, State
from tsugi_kpool.checkpoints import Store
from tsugi_kpool.core.journal import parse
from tsugi_kpool.sideband.hub.journal import BEHIND

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

WORDS = (*TINY, "topology.replicas=2", "train.max_steps=240", "train.checkpoint.every_s=0.5", "kpool.k=8")
"""Long enough after the disk is full: what the journal gets fits into its last page for a while."""


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    try:
        disk.mount()
    except NoDisk as error:
        pytest.skip(f"no tmpfs can be mounted here: {error}")
    yield disk
    disk.remove()


def test_training_goes_on_on_a_full_disk_and_the_adapter_is_put_elsewhere(small_disk, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    full = Fault(Kind.DISK_FULL, 0, 10, State.REDUCED, when_ready=True)

    def has_a_checkpoint() -> bool:
        return any(small_disk.place.glob("runs/*/checkpoints/v*"))

    traps = Injector(tmp_path / "faults", (full,), {Kind.DISK_FULL: once(small_disk.fill)}, has_a_checkpoint)
    fleet = Fleet(small_disk.place, (*WORDS, "fault.slow=[0:6,1:6]"), traps)
    said, adapter = ended_elsewhere(fleet)
    for told in (
        "the hub's journal cannot be written (No space left on device): training goes on",
        "could not be written (No space left on device): training goes on",
        "events and metrics cannot be written (No space left on device): training goes on",
    ):
        assert said.count(told) >= 1, (told, said)
    assert adapter.is_relative_to(elsewhere)
    assert (adapter / "adapter_config.json").exists()
    paths = fleet.paths
    assert not paths.adapter.exists()
    assert not list(paths.root.glob(".*tmp")), "no half adapter"
    store = Store(paths.checkpoints).newest()
    assert store.newest is not None
    assert store.skipped == (), "every visible checkpoint verifies"
    assert parse(paths.journal.with_name(paths.journal.name + BEHIND).read_bytes()).entries
    for line in filter(None, paths.events.read_bytes().splitlines()[:-1]):
        json.loads(line)
