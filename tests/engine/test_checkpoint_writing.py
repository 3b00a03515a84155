"""What a replica writes, what it reads back, and a full disk: training goes on, nothing torn is ever seen."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import threading

import pytest
import torch

from tests.runs import ALONE, run
from tests.support import kpool, tiny_lora
from tsugi_kpool import checkpoints as store_module
from tsugi_kpool.checkpoints import Store
from tsugi_kpool.core.checkpoint import ANCHORS, FileFacts
from tsugi_kpool.core.settings import Mode
from tsugi_kpool.durable import facts_of
from tsugi_kpool.engine import checkpoint as engine_module
from tsugi_kpool.engine.buffer import ElasticBuffer
from tsugi_kpool.engine.checkpoint import Writer, read
from tsugi_kpool.engine.checkpoint_parts import anchors, begin_from
from tsugi_kpool.engine.gradient import GradientUpdate
from tsugi_kpool.engine.local import LocalUpdate
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.engine.state import moments, restore
from tsugi_kpool.engine.update import Pooled
from tsugi_kpool.errors import LaunchError, TrainingError

OFTEN = (*ALONE, "train.max_steps=300", "train.checkpoint.every_s=0.05", "kpool.k=8", "kpool.min_steps=1")


def trained(parameters: list[torch.nn.Parameter], steps: int, kind=torch.optim.AdamW) -> torch.optim.Optimizer:
    optimizer = kind(parameters, lr=0.01)
    for step in range(steps):
        for number, parameter in enumerate(parameters):
            parameter.grad = torch.full_like(parameter, 0.1 * (step + number + 1))
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_moments_come_back_bit_for_bit(kind):
    ours, theirs = ([torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(4))] for _ in range(2))
    ours_optimizer = trained(ours, 3, kind)
    copy = moments(ours_optimizer)
    with torch.no_grad():
        for mine, other in zip(ours, theirs, strict=True):
            other.copy_(mine)
    theirs_optimizer = kind(theirs, lr=0.01)
    assert restore(theirs_optimizer, copy)
    for optimizer, parameters in ((ours_optimizer, ours), (theirs_optimizer, theirs)):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 0.7)
        optimizer.step()
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def test_moments_are_a_copy_and_those_of_another_model_are_refused():
    parameters = [torch.nn.Parameter(torch.ones(3))]
    optimizer = trained(parameters, 1)
    copy = moments(optimizer)
    before = {name: value.clone() for name, value in copy.items()}
    parameters[0].grad = torch.ones(3)
    optimizer.step()
    assert all(torch.equal(copy[name], before[name]) for name in copy)
    assert not restore(torch.optim.AdamW([torch.nn.Parameter(torch.ones(4))]), copy)
    assert not restore(torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))]), {"7.exp_avg": torch.ones(3)})


def gradient_round(update: GradientUpdate, seed: int) -> None:
    torch.manual_seed(seed)
    parts = [torch.randn(update.anchor.shape), torch.randn(update.anchor.shape)]
    adapters = tuple(range(len(parts[0])))
    tokens = torch.full((2, len(adapters)), 8.0, dtype=torch.float64)
    update.commit(update.combine(Pooled(adapters, sum(parts) / 16.0, tokens, 0.01, parts[0], parts[0])))


def test_the_fleets_optimizer_goes_on_as_if_it_had_not_stopped(tmp_path):
    """Gradient mode: anchors and moments of three rounds, through a file, give the fourth the same bits."""
    settings = kpool(mode=Mode.GRADIENT)

    def make() -> ElasticBuffer:
        pool = AdapterPool(tiny_lora(settings), settings.n)
        return ElasticBuffer(GradientUpdate(pool, torch.optim.AdamW, 1.0, 20))

    ours, theirs = make(), make()
    for seed in range(3):
        gradient_round(ours.update, seed)
    told: list[object] = []
    writer = Writer(tmp_path, lambda *what: told.append(what))
    writer.write("at3", ANCHORS, anchors(ours))
    gradient_round(ours.update, 3)
    writer.stop(20.0)
    path = tmp_path / ".at3.tmp" / ANCHORS
    assert told == [("at3", ANCHORS, facts_of(path, path.stat().st_size))]
    begin_from(theirs, read(path))
    gradient_round(theirs.update, 3)
    assert torch.equal(theirs.update.anchor, ours.update.anchor)


def test_anchors_of_another_pool_are_refused():
    pool = AdapterPool(tiny_lora(kpool()), 4)
    with pytest.raises(LaunchError, match=r"anchors \[4, 7\]"):
        begin_from(ElasticBuffer(LocalUpdate(pool)), {"anchor": torch.zeros(4, 7)})


def test_a_file_that_is_none_of_ours_is_one_clear_error(tmp_path):
    (tmp_path / ANCHORS).write_bytes(b"\x80\x04pickle")
    with pytest.raises(TrainingError, match="cannot read"):
        read(tmp_path / ANCHORS)


def test_the_writer_says_what_it_could_not_write_and_goes_on(tmp_path, monkeypatch):
    told = []
    real, broken = engine_module.write_file, threading.Event()
    broken.set()

    def full(path, data):
        if broken.is_set():
            broken.clear()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, data)

    monkeypatch.setattr(engine_module, "write_file", full)
    writer = Writer(tmp_path, lambda checkpoint, file, result: told.append((checkpoint, result)))
    writer.write("at1", ANCHORS, {"anchor": torch.ones(2)})
    writer.write("at2", ANCHORS, {"anchor": torch.ones(2)})
    writer.stop(20.0)
    assert told[0] == ("at1", "No space left on device")
    assert isinstance(told[1][1], FileFacts)


def names(paths) -> list[str]:
    return [json.loads(line)["event"] for line in paths.events.read_text().splitlines()]


@pytest.mark.parametrize("module", [engine_module, store_module], ids=["replica", "launcher"])
def test_a_disk_that_is_full_for_a_while_stops_nothing(tmp_path, monkeypatch, module):
    real, refused, torn = module.write_file, [0], []

    def full(path, data):
        if refused[0] < 3 and "config" not in str(path):
            refused[0] += 1
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, data)

    def look(checkpoints, hub):
        torn.extend(checkpoints.store.newest().skipped)

    monkeypatch.setattr(module, "write_file", full)
    paths = run(OFTEN, tmp_path, monkeypatch, turn=look)
    newest = Store(paths.checkpoints).newest().newest
    assert newest is not None
    assert newest.manifest.samples == 600, "all of the data was trained on, and the last checkpoint has it"
    assert torn == []
    assert refused[0] == 3
    assert names(paths).count("checkpoint_failed") == 1, "told once, however often it comes back"
    assert list(paths.checkpoints.glob(".*")) == []


@pytest.fixture
def small_disk():
    """Mounts a real file system of 600 kB: room for one checkpoint of 440 kB. Not everybody may do that."""
    mounted = []

    def mount(paths):
        paths.checkpoints.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(paths.checkpoints)]
        if subprocess.run(command, capture_output=True, timeout=60, check=False).returncode:
            pytest.skip("a file system cannot be mounted here")
        mounted.append(paths.checkpoints)

    yield mount
    for path in mounted:
        subprocess.run(["umount", str(path)], timeout=60, check=True)


def test_a_real_full_disk_keeps_the_checkpoint_that_fits(tmp_path, monkeypatch, small_disk):
    torn = []

    def look(checkpoints, hub):
        torn.extend(checkpoints.store.newest().skipped)

    paths = run(OFTEN, tmp_path, monkeypatch, turn=look, prepare=small_disk)
    found = Store(paths.checkpoints).newest()
    assert found.newest is not None
    assert found.skipped == ()
    assert torn == []
    assert names(paths).count("checkpoint") == 1
    assert names(paths).count("checkpoint_failed") == 1
    assert (paths.adapter / "adapter_model.safetensors").exists()
    assert list(paths.checkpoints.glob(".*")) == []


def test_a_folder_that_cannot_be_written_costs_the_checkpoints_and_nothing_else(tmp_path, monkeypatch):
    """A file where the folder should be stands for a read-only disk, which root would not notice."""
    paths = run(OFTEN, tmp_path, monkeypatch, prepare=lambda paths: paths.checkpoints.write_text("in the way"))
    assert (paths.adapter / "adapter_model.safetensors").exists()
    assert "checkpoint" not in names(paths)
    assert names(paths).count("checkpoint_failed") == 1
