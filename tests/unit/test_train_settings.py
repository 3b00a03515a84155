"""What `train.*` refuses, in words that say what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsugi_cli.config import training
from tsugi_cli.config.compose import compose
from tsugi_cli.config.evaluating import every
from tsugi_cli.launch.request import RunRequest
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["evaluate.every=often"], "evaluate.every must be steps of the fleet"),
        (["evaluate.every=0"], "evaluate.every must be steps of the fleet"),
        (["evaluate.every=200%"], "evaluate.every must be steps of the fleet"),
        (["train.stop_early.patience=3"], "train.stop_early.patience=3 needs evaluate.every"),
        (["train.checkpoint.best=true"], "train.checkpoint.best=true needs evaluate.every"),
        (
            ["evaluate.every=5%", "train.stop_early.patience=0"],
            "patience must be null or at least 1",
        ),
        (["evaluate.every=5%", "data.n_eval=0"], "evaluate.every=5% has nothing to measure"),
        (["evaluate.every=9", "topology.workers=2", "topology.inside=fsdp2"], "cannot be used with topology.inside"),
    ],
)
def test_an_evaluation_while_training_that_cannot_be_is_refused(words, problem):
    with pytest.raises(ConfigError, match=problem):
        compose(["model=tiny", *words])


@pytest.mark.parametrize(("word", "amount"), [("200", 200.0), ("0.05", 0.05), ("10min", 600.0), ("5%", 0.05)])
def test_how_often_is_read_as_it_is_typed(word, amount):
    spec = compose(["model=tiny", f"evaluate.every={word}"])
    found = every(spec.evaluate.every)
    assert found is not None
    assert found.amount == pytest.approx(amount)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["accumulate=0"], "train.accumulate must be at least 1, found 0"),
        (["scheduler=cosin"], "train.scheduler"),
        (["decay=0.2"], "train.decay=0.2 is for train.scheduler=wsd, found train.scheduler=cosine_with_min_lr"),
        (["scheduler=constant", "final_lr=0.1"], "train.final_lr=0.1 means nothing to train.scheduler=constant"),
        (["scheduler=wsd", "decay=0"], r"train.decay must be null, a share of the run in \(0, 1\)"),
        (["scheduler=wsd", "decay=0.6", "warmup=0.5"], "train.warmup=0.5 and train.decay=0.6 exceed the run"),
        (["max_steps=40", "warmup=50"], "train.warmup=50 exceed the run of 40 steps"),
        (["optimizer=adam"], "train.optimizer.*adamw"),
        (["lora_plus_ratio=0"], "train.lora_plus_ratio must be positive"),
        (["embedding_lr=-1"], "train.embedding_lr must be positive, or null"),
        (["label_smoothing=1"], r"train.label_smoothing must lie in \[0, 1\)"),
        (["beta1=1"], r"train.beta1 must lie in \[0, 1\), or be null"),
        (["optimizer=adafactor", "beta1=0.9"], "train.beta1=0.9 means nothing to train.optimizer=adafactor"),
        (
            ["scale_lr=true"],
            "train.scale_lr has gone: train.optimizer=auto takes train.lr as the rate of synchronous",
        ),
        (["beta1=0.05"], "train.beta1=0.05 is too short a memory to tell a gradient from its noise"),
        (["max_bad_batches=1.5"], "train.max_bad_batches must be a share of the run.s micro-batches"),
        (["batch_tokens=0"], "train.batch_tokens must be null, auto or at least 1"),
        (["batch_tokens=10"], "train.batch_tokens must not be below data.max_tokens"),
        (["warmup=2.5"], "train.warmup must be a share of the run in"),
    ],
)
def test_what_cannot_be_is_refused_by_name(words, problem):
    with pytest.raises(ConfigError, match=problem):
        compose(["model=tiny", *(f"train.{word}" for word in words)])


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["kpool.mode=gradient"], "train.optimizer=muon cannot be used with kpool.mode=gradient: take adamw"),
        (["kpool.select_at=train"], "train.optimizer=muon cannot be used with kpool.select_at=train"),
        (
            ["topology.workers=2", "train.micro_batch=2", "topology.inside=fsdp2"],
            "train.optimizer=muon cannot be used with topology.inside=fsdp2",
        ),
    ],
)
def test_what_is_no_matrix_cannot_be_stepped_as_one(words, problem):
    with pytest.raises(ConfigError, match=problem):
        compose(["model=tiny", "train.optimizer=muon", *words])


@pytest.mark.parametrize("word", ["lora_plus_ratio=16", "embedding_lr=1e-4"])
@pytest.mark.parametrize("place", ["kpool.mode=gradient", "kpool.select_at=train"])
def test_rates_that_differ_need_parameters_of_their_own(word, place):
    with pytest.raises(ConfigError, match=f"train.{word.partition('=')[0]} cannot be used with {place}"):
        compose(["model=tiny", f"train.{word}", place])


@pytest.mark.parametrize("name", training.OF_BITSANDBYTES)
def test_a_missing_package_is_told_before_the_start(name, monkeypatch):
    monkeypatch.setattr(training, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        compose(["model=tiny", f"train.optimizer={name}"])
    assert caught.value.problems == [f"train.optimizer={name} needs one more package: pip install 'tsugi[quant]'"]


def test_a_torch_without_muon_is_told_before_the_start(monkeypatch):
    monkeypatch.setattr(training, "version", lambda name: "2.8.1+cpu")
    with pytest.raises(ConfigError, match=r"train.optimizer=muon needs torch 2.9, found 2.8.1\+cpu"):
        compose(["model=tiny", "train.optimizer=muon"])


@pytest.mark.parametrize(
    "words",
    [
        ["optimizer=muon", "beta1=0.9", "lora_plus_ratio=8", "embedding_lr=1e-4", "neftune=5", "label_smoothing=0.1"],
        ["optimizer=adamw", "beta1=0.05"],
        ["scheduler=wsd", "decay=0.5", "warmup=0.5", "final_lr=0.2"],
        ["scheduler=wsd", "decay=10", "warmup=30", "max_steps=40"],
        ["scheduler=linear", "warmup=30"],
        ["scheduler=constant", "warmup=0"],
    ],
)
def test_what_can_be_is_taken(words):
    compose(["model=tiny", *(f"train.{word}" for word in words)])


@pytest.mark.parametrize(
    ("words", "taken", "noted"),
    [
        (["topology.replicas=2"], "fleet_adamw", False),
        (["topology.replicas=1", "topology.min_replicas=1"], "adamw", False),
        (["topology.replicas=1", "topology.min_replicas=1", "topology.spare=2"], "fleet_adamw", False),
        (["topology.replicas=4", "kpool.mode=gradient", "kpool.max_staleness=8"], "adamw", False),
        (["topology.replicas=4", "train.optimizer=adamw"], "adamw", True),
        (["topology.replicas=1", "topology.min_replicas=1", "train.optimizer=adamw"], "adamw", False),
        (["topology.replicas=4", "train.optimizer=lion"], "lion", False),
    ],
)
def test_auto_is_the_fleets_rule_where_steps_are_averaged_and_a_name_is_taken_as_it_is(
    words, taken, noted, monkeypatch
):
    monkeypatch.setattr(training, "find_spec", lambda _: True)
    spec = compose(["model=tiny", *words])
    request = RunRequest(spec, 100, "", None)
    assert f" for {taken}, " in request.plan(RunPaths(Path("run"))).facts["learning rate"]
    notes = [note for note in request.notes() if "train.optimizer" in note]
    assert [note.partition(" takes mean steps")[0] for note in notes] == ["note: train.optimizer=adamw"] * noted
