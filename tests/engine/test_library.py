"""The library between two replicas: a loop that knows nothing of us, good and bad endings."""

from __future__ import annotations

import copy
import threading
from types import SimpleNamespace

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tests.library import JOIN_S, Pair, batch, config, digest, hooks_of, our_threads, train, trained
from tests.support import await_true
from tsugi_kpool import ConfigError, TsugiError, plesio_shutdown

pytestmark = pytest.mark.usefixtures("hooks_of_two_threads")


@pytest.mark.parametrize(
    "changes", [{}, {"payload": "fp32", "trigger": "count", "k_active": 4}], ids=["int8", "fp32"]
)
def test_two_replicas_end_on_one_adapter(tmp_path, changes):
    pair = Pair(tmp_path / "keys", config(**changes))
    before = digest(pair.models[0])

    def body(steps: int):
        def trains(model, handle) -> None:
            train(model, steps // 2, seed=handle.replica)
            await_true(lambda: handle.version, "the first round, while both have more to train")
            train(model, steps - steps // 2, seed=handle.replica)

        return trains

    errors = pair.run(body(12), body(30))
    assert errors == [None, None]
    assert digest(pair.models[0]) == digest(pair.models[1]) != before
    assert pair.handles[0].version == pair.handles[1].version >= 2
    for replica, steps in enumerate((12, 30)):
        ledger = pair.engine(replica).buffer.ledger
        assert ledger.produced == ledger.committed == [steps * 2 * 11] * 4
    assert [hooks_of(model) for model in pair.models] == [0, 0]
    assert our_threads() == []
    assert not (tmp_path / "keys").exists()


def test_only_what_is_trained_on_counts(tmp_path):
    """Accumulated batches make one step; evaluation, masked labels and other models' optimizers count nothing."""
    pair = Pair(tmp_path / "keys", config())

    def body(model, handle) -> None:
        optimizer = torch.optim.AdamW(trained(model), lr=1e-2)
        other = torch.nn.Linear(2, 2)
        ids, masked = batch(0), batch(0)
        masked[:, :6] = -100
        with torch.no_grad():
            model(input_ids=ids, labels=ids)
        model(input_ids=ids, labels=masked).loss.backward()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        other(torch.ones(2)).sum().backward()
        torch.optim.SGD(other.parameters(), lr=1.0).step()
        model(ids, attention_mask=torch.ones_like(ids)).logits.sum().backward()
        optimizer.step()
        progress = pair.engine(handle.replica).progress
        assert (progress.steps, progress.samples, progress.tokens) == (2, 6, 12 + 22 + 24)
        assert progress.loss > 0.0

    assert pair.run(body, body) == [None, None]


def test_a_step_that_raises_does_not_keep_the_lock(tmp_path):
    pair = Pair(tmp_path / "keys", config())

    class Breaks(torch.optim.SGD):
        def step(self, closure=None):
            raise ArithmeticError("in the step")

    def body(model, handle) -> None:
        lock = pair.engine(handle.replica).buffer._lock
        ids = batch(0)
        model(input_ids=ids, labels=ids).loss.backward()
        with pytest.raises(ArithmeticError):
            Breaks(trained(model), lr=0.1).step()
        assert lock.locked()
        model(input_ids=ids, labels=ids)
        train(model, 6, seed=handle.replica)
        with pytest.raises(ArithmeticError):
            Breaks(trained(model), lr=0.1).step()  # the last thing before closing

    assert pair.run(body, body) == [None, None]
    assert digest(pair.models[0]) == digest(pair.models[1])


@pytest.mark.parametrize("culprit", [0, 1])
def test_an_exception_of_the_user_ends_everybody_and_leaves_nothing(tmp_path, culprit):
    pair = Pair(tmp_path / "keys", config())

    def breaks(model, handle) -> None:
        train(model, 3)
        raise KeyError("spilt")

    def goes_on(model, handle) -> None:
        for _ in range(3000):
            train(model, 1, seed=1)

    errors = pair.run(*([breaks, goes_on] if culprit == 0 else [goes_on, breaks]))
    assert isinstance(errors[culprit], KeyError)
    assert isinstance(errors[1 - culprit], TsugiError)
    assert f"replica {culprit}: KeyError: 'spilt'" in str(errors[1 - culprit])
    assert our_threads() == []
    assert [hooks_of(model) for model in pair.models] == [0, 0]


def test_a_replica_with_another_pool_is_refused(tmp_path):
    pair = Pair(tmp_path / "keys", config(), config(payload="fp32"))
    errors = pair.run(lambda *_: None, lambda *_: None)
    assert all(isinstance(error, TsugiError) for error in errors)
    assert any("its configuration differs" in str(error) for error in errors)
    assert our_threads() == []


def test_a_copy_of_the_model_is_in_no_pool(tmp_path):
    pair = Pair(tmp_path / "keys", config())

    def body(model, handle) -> None:
        twin = copy.deepcopy(model)
        train(twin, 2)
        assert pair.engine(handle.replica).progress.steps == 0
        with pytest.raises(ConfigError, match="in no pool"):
            plesio_shutdown(twin)
        train(model, 2)

    assert pair.run(body, body) == [None, None]


def test_distributed_data_parallel_is_refused(tmp_path, monkeypatch):
    pair = Pair(tmp_path / "keys", config())
    both_joined = threading.Barrier(2)

    def body(model, handle) -> None:
        both_joined.wait(JOIN_S)
        fake = SimpleNamespace(process_group=SimpleNamespace(size=lambda: 2))
        monkeypatch.setattr(DistributedDataParallel, "_active_ddp_module", fake)
        with pytest.raises(ConfigError, match="DistributedDataParallel over 2 processes"):
            train(model, 1)
        both_joined.wait(JOIN_S)

    assert pair.run(body, body) == [None, None]
