"""`train.batch_tokens=auto`: as much at once as there is memory for, and the same gradient whatever that is."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.engine.test_step import Trained
from tests.runs import ALONE, run
from tests.support import await_true
from tsugi_cli.config.compose import compose
from tsugi_cli.finetune import room
from tsugi_cli.finetune.objectives import SUPERVISED
from tsugi_cli.finetune.room import tokens_at_once, tried
from tsugi_cli.finetune.story import LeasedBatches
from tsugi_kpool.core.messages import Lease
from tsugi_kpool.errors import ConfigError, MachineError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained() -> Trained:
    return Trained("train.micro_batch=8", "train.batch_tokens=auto", "topology.replicas=1")


def found(trained: Trained, monkeypatch, free: float, **topology) -> int:
    monkeypatch.setattr(room.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    spec = replace(trained.spec, topology=replace(trained.spec.topology, **topology))
    longest = max(trained.data.train.lengths())
    return tokens_at_once(spec, longest, trained.model, trained.model, SUPERVISED, CPU) // longest


def test_a_cpu_is_asked_for_its_free_memory_which_its_replicas_share(trained, monkeypatch):
    """No more than a step has; a machine with less memory computes fewer samples at once."""
    one = room._bytes(trained.spec, max(trained.data.train.lengths()), trained.model)
    assert found(trained, monkeypatch, 100 * one) == 8
    assert found(trained, monkeypatch, 6.1 * one) == 3
    assert found(trained, monkeypatch, 6.1 * one, replicas=3) == 1
    with pytest.raises(MachineError, match="there is no memory for one sample of"):
        found(trained, monkeypatch, one)


def test_a_model_that_nobody_has_counted_is_named(trained):
    spec = replace(trained.spec, model=replace(trained.spec.model, attention="eager"))
    with pytest.raises(ConfigError, match=r"of the type llama with .*: give a number"):
        tokens_at_once(spec, 100, trained.model, trained.model, SUPERVISED, CPU)


def test_a_device_is_tried_until_it_has_room():
    asked: list[int] = []

    def trial(samples: int) -> None:
        asked.append(samples)
        if samples > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    assert tried(trial, 20, 64) == 2
    assert asked == [20, 10, 5, 2]
    with pytest.raises(MachineError, match="one sample of 64 tokens"):
        tried(lambda samples: trial(samples + 9), 20, 64)
    with pytest.raises(RuntimeError, match="something else"):
        tried(lambda samples: (_ for _ in ()).throw(RuntimeError("something else")), 20, 64)


def test_a_trial_is_a_step_that_leaves_nothing(trained):
    before = [each.clone() for each in trained.parameters]
    room._trial(2, 32, trained.spec, trained.model, trained.model, SUPERVISED, CPU)
    assert all(each.grad is None for each in trained.parameters)
    assert all(torch.equal(was, now) for was, now in zip(before, trained.parameters, strict=True))


def test_what_is_found_only_cuts_a_step(trained):
    lease = Lease(ticket=0, start=0, stop=8)
    batches = LeasedBatches(trained.spec, trained.data, trained.tokenizer)
    gradients = []
    for samples in (8, 2):
        batches.most = samples * batches.longest
        (step,) = batches.steps(lease)
        gradients.append(trained.gradient(step)[1])
        assert max(batch.worked for batch in step.batches) <= batches.most
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 1e-5


def test_several_workers_are_refused_by_name():
    with pytest.raises(ConfigError, match="auto is for one worker in each replica"):
        compose(["model=tiny", "train.batch_tokens=auto", "topology.workers=2", "train.micro_batch=2"])


def test_a_run_finds_its_own_size(tmp_path, monkeypatch, capsys):
    words = [*ALONE, "train.micro_batch=2", "train.accumulate=2", "train.batch_tokens=auto", "train.max_steps=6"]
    paths = run(words, tmp_path, monkeypatch)
    await_true(lambda: paths.adapter.exists(), "the adapter")
    assert "train.batch_tokens=auto: " in capsys.readouterr().err
