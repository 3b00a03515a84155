"""A run's disk turns read-only, breaks, or is unmounted: training goes on, and it is said where the adapter is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.disk import Disk, NoDisk, ended_elsewhere, once
from tests.faults.fleet import TINY, Fleet
from tests.faults.injector import Injector
from tests.faults.points import Fault, Kind, State
from tsugi_kpool.checkpoints import Store

pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

STEPS = 120
"""For each replica: before, between and after the two moments there is time for a checkpoint to be tried."""
WORDS = (*TINY, "train.checkpoint.every_s=0.3", "kpool.k=8")
FIRST, SECOND = 30, 60
"""Steps of replica 0 at which something happens to the disk, the first thing not before it has a checkpoint."""


@pytest.fixture
def mounted(tmp_path, monkeypatch) -> Iterator[Callable[[bool], Disk]]:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    disks = []

    def mount(ext4: bool) -> Disk:
        disk = Disk(tmp_path / "disk", tmp_path / "image" if ext4 else None)
        try:
            disk.mount()
        except NoDisk as error:
            pytest.skip(f"no disk can be mounted here: {error}")
        disks.append(disk)
        return disk

    yield mount
    for disk in disks:
        disk.remove()


def trained(disk: Disk, tmp_path: Path, replicas: int, *happens: tuple[Kind, Callable[[], None]]) -> tuple[str, Path]:
    """A run to whose disk this happens; what it said, and where its adapter is."""
    steps, slow = STEPS * replicas, f"fault.slow=[{','.join(f'{each}:6' for each in range(replicas))}]"
    faults = tuple(
        Fault(kind, 0, step, State.REDUCED, when_ready=True)
        for (kind, _), step in zip(happens, (FIRST, SECOND), strict=False)
    )

    def has_a_checkpoint() -> bool:
        return any(disk.place.glob("runs/*/checkpoints/v*"))

    acts = {kind: once(act) for kind, act in happens}
    traps = Injector(tmp_path / "faults", faults, acts, has_a_checkpoint)
    fleet = Fleet(disk.place, (*WORDS, f"topology.replicas={replicas}", f"train.max_steps={steps}", slow), traps)
    said, adapter = ended_elsewhere(fleet)
    for what in ("events and metrics cannot", "the hub's journal cannot"):
        assert said.count(f"{what} be written") == 1, (what, said)
    assert said.count("summary.json could not be written") == 1, said
    assert f"{steps * 2}/{steps * 2} samples 100%" in said
    return said, adapter


def test_a_disk_that_turns_read_only_and_then_breaks(mounted, tmp_path):
    disk = mounted(True)
    shown: list[tuple[str, ...]] = []

    def break_down() -> None:
        """What could be read of a read-only disk is whole; then nothing can be read any more."""
        (run,) = (each for each in (disk.place / "runs").iterdir() if not each.is_symlink())
        store = Store(run / "checkpoints").newest()
        assert store.newest is not None
        shown.append(tuple(name for name, _ in store.skipped))
        disk.break_down()

    happens = ((Kind.READ_ONLY, disk.turn_read_only), (Kind.DISK_BROKEN, break_down))
    said, adapter = trained(disk, tmp_path, 2, *happens)
    assert shown == [()], "every visible checkpoint verifies"
    assert adapter.is_relative_to(tmp_path / "elsewhere")
    assert said.count("could not be written (Read-only file system): training goes on") == 1
    assert said.count("could not be written (Input/output error): training goes on") == 1


def test_a_disk_that_is_unmounted_gets_no_second_run_directory_below_its_place(mounted, tmp_path):
    """Open files live on, so that every write succeeds and nobody can ever see it."""
    disk = mounted(False)
    said, adapter = trained(disk, tmp_path, 1, (Kind.UNMOUNTED, disk.remove))
    assert adapter.is_relative_to(tmp_path / "elsewhere")
    assert said.count("could not be written (No such file or directory): training goes on") == 1
    assert list(disk.place.iterdir()) == [], "it would be hidden when the disk is mounted again"
