"""The fleet in virtual time that benchmarks/engine compares settings with: it trains, and its rules hold."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "engine"))

from lab import Lab
from virtual import TensorFleet

from tsugi_cli.config.compose import compose
from tsugi_kpool.sim import LinkModel, Slow, Speeds

QUIET = (
    "model=tiny",
    "data.n_train=32",
    "data.n_eval=4",
    "data.n_test=0",
    "data.scorer=null",
    "evaluate.examples=0",
    "train.micro_batch=1",
)
FAST = LinkModel(bandwidth_bytes_per_s=1e9)


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads for a model this small wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(*overrides: str, link: LinkModel = FAST) -> TensorFleet:
    """Three replicas, one of them 4x slower, through 32 samples."""
    spec = compose([*QUIET, "topology.replicas=3", "train.lr=0.02", *overrides])
    fleet = TensorFleet(spec, Lab(spec), Speeds((1.0,), slow=(Slow(2, 4.0),)), link, every=16)
    report = fleet.run(1000.0)
    assert report.failure is None
    return fleet


def test_it_trains_and_all_replicas_end_on_the_same_anchors():
    fleet = trained()
    assert fleet.differences == []
    assert fleet.curve[-1].loss < fleet.curve[0].loss < 5.7
    samples = [replica.progress.samples for replica in fleet.replicas]
    assert sum(samples) == 32
    assert samples[2] < samples[0] / 2
    assert len({replica.engine.buffer.update.anchor.numpy().tobytes() for replica in fleet.replicas}) == 1


def test_over_an_exchange_it_trains_and_all_replicas_end_on_the_same_anchors():
    """Its rounds are as long as four steps, so that steps are buffered while parts and results are on their way."""
    slow = LinkModel(0.02, 16_000.0, 8_000, hub_bytes_per_s=16_000.0, on_hub=(0,))
    fleet = trained("topology.data_plane=exchange", link=slow)
    assert fleet.differences == []
    assert fleet.curve[-1].loss < fleet.curve[0].loss < 5.7
    assert all(replica.ledger.committed == replica.ledger.produced for replica in fleet.replicas)
    assert fleet.hub.rounds.version == len(fleet.exchange.kept) > 2
    assert len({replica.engine.buffer.update.anchor.numpy().tobytes() for replica in fleet.replicas}) == 1


def test_replicas_whose_second_moment_is_the_fleets_end_on_the_same_anchors():
    fleet = trained("train.optimizer=fleet_adamw")
    assert fleet.differences == []
    assert fleet.curve[-1].loss < fleet.curve[0].loss < 5.7
    assert {replica.optimizer.defaults["replicas"] for replica in fleet.replicas} == {3}


@pytest.mark.parametrize("link_free", ["2", "4"])
def test_eps_auto_on_a_free_link_is_a_count_of_min_steps(link_free):
    """Which is why docs/settings.md has one figure for both."""
    auto = trained("kpool.eps=auto", f"kpool.min_steps={link_free}")
    count = trained("kpool.trigger=count", f"kpool.count={link_free}", "kpool.min_steps=2")
    assert auto.curve == count.curve
