"""What a launch starts: one torchrun agent per replica, all from one resolved configuration."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tsugi_cli.config.compose import compose, config_hash
from tsugi_cli.finetune.model import fetching
from tsugi_cli.launch.plan import make_plan
from tsugi_cli.launch.run import finetune
from tsugi_cli.record.answer import Answer
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.errors import ConfigError

PATHS = RunPaths(Path("/runs/x"))


def test_one_agent_for_each_replica():
    """A shared rendezvous would end the healthy replicas with a dead one (decision 0002)."""
    plan = make_plan(compose(["model=tiny", "topology.replicas=3"]), PATHS, n_train=100)
    assert [agent.replica for agent in plan.agents] == [0, 1, 2]
    for agent in plan.agents:
        words = list(agent.argv)
        assert words[1:3] == ["-m", "torch.distributed.run"]
        assert {"--rdzv-backend=tsugi", "--nnodes=1", "--nproc-per-node=1", "--max-restarts=0"} <= set(words)
        assert words[-4:] == ["--run-dir", "/runs/x", "--replica", str(agent.replica)]
        assert agent.env["TORCHELASTIC_ERROR_FILE"] == f"/runs/x/logs/replica{agent.replica}.error.json"


def test_replicas_from_elsewhere_have_no_agent_here():
    """The hub waits for them, tells them of a failure itself, and notices their silence."""
    plan = make_plan(compose(["model=tiny", "topology.replicas=3", "topology.here=1"]), PATHS, n_train=100)
    assert [agent.replica for agent in plan.agents] == [0]
    assert (plan.elsewhere, plan.hub.replicas, plan.hub.supervised) == (2, 3, False)
    assert plan.hub.start_timeout_s == 3600
    assert plan.hub.silent_timeout_s == 4
    alone = make_plan(compose(["model=tiny", "topology.replicas=3"]), PATHS, n_train=100)
    assert (alone.elsewhere, alone.hub.supervised, alone.hub.silent_timeout_s) == (0, True, 4)


def test_what_is_named_as_a_package_is_no_option_of_pip(tmp_path):
    command = fetching("--index-url=http://elsewhere", tmp_path)
    assert command[command.index("--") + 1 :] == ["--index-url=http://elsewhere"]


def test_a_plan_of_many_replicas_is_short():
    said = io.StringIO()
    assert finetune(["model=tiny", "topology.replicas=100000"], True, True, Answer(said)) == 0
    assert "99984 more replicas in the same way" in said.getvalue()
    assert len(said.getvalue()) < 20_000


def test_no_secret_stands_in_a_command_line_or_the_environment():
    plan = make_plan(compose(["model=tiny"]), PATHS, n_train=100)
    for agent in plan.agents:
        assert not any("key" in word.lower() or "secret" in word.lower() for word in (*agent.argv, *agent.env))


def test_hub_counts_samples_by_epochs_or_steps():
    by_epochs = make_plan(compose(["model=tiny", "train.epochs=1.5"]), PATHS, n_train=100)
    assert by_epochs.hub.samples == 150
    spec = compose(["model=tiny", "train.max_steps=40", "train.micro_batch=3"])
    by_steps = make_plan(spec, PATHS, n_train=100)
    assert by_steps.hub.samples == 120
    assert by_steps.hub.config_hash == config_hash(spec)


def test_hubs_are_not_asked_for_models_that_need_none():
    assert make_plan(compose(["model=tiny"]), PATHS, 10).agents[0].env["HF_HUB_OFFLINE"] == "1"


def test_an_agent_starts_all_workers_of_its_replica_and_the_plan_says_how_they_share():
    words = ["model=tiny", "topology.workers=4", "topology.inside=fsdp2", "train.micro_batch=6"]
    plan = make_plan(compose(words), PATHS, n_train=100)
    assert all("--nproc-per-node=4" in agent.argv for agent in plan.agents)
    assert plan.hub.micro_batch == 6, "a micro-batch is the replica's: more workers make it faster, not larger"
    assert plan.facts["replicas"] == "2 of 4 workers (fsdp2) on this machine, 1 thread(s) each"
    assert plan.facts["step"].startswith("6 samples of a replica, 1 or 2 on each worker")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (
            ["topology.workers=3", "train.micro_batch=2"],
            "must not be below topology.workers, found 2 samples for 3 workers",
        ),
        (["topology.workers=0"], "topology.workers must be at least 1, found 0"),
        (["topology.inside=fsdp1"], "topology.inside"),
        (
            ["topology.workers=2", "topology.inside=fsdp2", "kpool.select_at=train"],
            "cannot be used with topology.inside=fsdp2",
        ),
    ],
)
def test_workers_that_cannot_share_are_refused_before_anything_starts(words, problem):
    with pytest.raises(ConfigError, match=problem):
        compose(["model=tiny", "train.micro_batch=2", *words])


def test_the_plan_names_every_fault():
    faults = {"slow": "0:2", "step_s": "0:0.1", "data_wait": "1:0.5", "nan": "1:3@20", "flip": "1:1@20"}
    words = [f"fault.{name}={entry}" for name, entry in faults.items()]
    facts = make_plan(compose(["model=tiny", *words]), PATHS, n_train=100).facts
    assert [text.split()[1] for text in facts["injected"].split(", ")] == list(faults.values())
