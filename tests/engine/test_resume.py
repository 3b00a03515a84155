"""Stop and resume, one replica: the adapter is that of the undisturbed run, bit for bit."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import yaml
from safetensors.torch import load_file

from tests.runs import ALONE, WAIT_S, run
from tsugi_cli.config.compose import read_resolved
from tsugi_cli.finetune import assembled
from tsugi_cli.launch import request as asked
from tsugi_cli.launch.request import RunRequest
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.checkpoints import Store
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.errors import ConfigError, DataError

STEPS = (*ALONE, "train.max_steps=24", "train.lr=0.02", "train.checkpoint.every_s=0")


def adapter(paths: RunPaths) -> dict[str, bytes]:
    tensors = load_file(paths.adapter / "adapter_model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def manifest(paths: RunPaths):
    newest = Store(paths.checkpoints).newest().newest
    assert newest is not None
    return newest.manifest


def with_dropout(monkeypatch):
    """The tiny model has none; with it the run depends on torch's random numbers, too."""
    original = assembled.load

    def load(model, device=None):
        base, tokenizer = original(model)
        for layer in base.model.layers:
            layer.self_attn.attention_dropout = 0.2
        return base, tokenizer

    monkeypatch.setattr(assembled, "load", load)


@pytest.mark.parametrize(
    "changes",
    [
        ("kpool.overlap=false",),
        ("kpool.overlap=false", "kpool.select_at=train", "kpool.k=8"),
        ("train.weight_decay=0.1", "kpool.payload=fp32", "data.packing=true", "data.max_tokens=800"),
    ],
)
def test_stopped_and_resumed_it_is_the_undisturbed_run_bit_for_bit(tmp_path, monkeypatch, changes):
    with_dropout(monkeypatch)
    undisturbed = run([*STEPS, *changes], tmp_path, monkeypatch)
    first = run([*STEPS, *changes], tmp_path, monkeypatch, stop_at=7)
    before = manifest(first)
    assert 14 <= before.samples < 48
    assert before.clean
    second = run([f"resume={first.root}"], tmp_path, monkeypatch, stop_at=5)
    third = run([f"resume={second.root}"], tmp_path, monkeypatch)
    after = manifest(third)
    assert (after.samples, after.trained, after.done) == (48, 48, ((0, 48),))
    assert after.tokens == manifest(undisturbed).tokens
    assert adapter(third) == adapter(undisturbed)
    assert adapter(first) != adapter(undisturbed)


def a_round_for_each_step(monkeypatch):
    """Two runs have the same rounds then, however busy the machine is."""
    original = KPoolEngine.apply_rounds

    def apply_rounds(self):
        until = time.monotonic() + WAIT_S
        while self.version < self.progress.steps:
            assert time.monotonic() < until
            time.sleep(0.001)
        original(self)

    monkeypatch.setattr(KPoolEngine, "apply_rounds", apply_rounds)


def test_in_gradient_mode_the_same_rounds_give_the_same_bits(tmp_path, monkeypatch):
    """The fleet's moments and the clipping of its steps go on, as do the random numbers."""
    with_dropout(monkeypatch)
    a_round_for_each_step(monkeypatch)
    words = [*STEPS, "kpool.mode=gradient", "kpool.overlap=false", "kpool.k=8", "kpool.payload=fp32"]
    words += ["kpool.trigger=count", "kpool.count=1", "kpool.min_steps=1", "train.weight_decay=0.1"]
    undisturbed = run(words, tmp_path, monkeypatch)
    first = run(words, tmp_path, monkeypatch, stop_at=7)
    assert manifest(first).samples == 14
    second = run([f"resume={first.root}"], tmp_path, monkeypatch)
    assert manifest(second).version == manifest(undisturbed).version == 24
    assert adapter(second) == adapter(undisturbed)
    assert adapter(first) != adapter(undisturbed)


def test_without_its_moments_it_is_another_run(tmp_path, monkeypatch):
    """So the test above can fail."""
    undisturbed = run(STEPS, tmp_path, monkeypatch)
    first = run(STEPS, tmp_path, monkeypatch, stop_at=7)
    monkeypatch.setattr("tsugi_cli.finetune.checkpoint_state.restore", lambda optimizer, tensors: True)
    second = run([f"resume={first.root}"], tmp_path, monkeypatch)
    assert manifest(second).samples == 48
    assert adapter(second) != adapter(undisturbed)


def test_a_run_that_dies_goes_on_from_its_last_periodic_checkpoint_and_counts_what_repeats(tmp_path, monkeypatch):
    words = [*ALONE, "train.max_steps=4000", "train.checkpoint.every_s=0.2", "kpool.k=8", "kpool.min_steps=1"]
    enough = []

    def look(checkpoints, hub):
        if checkpoints.newest is not None and checkpoints.newest.manifest.samples:
            enough.append(True)

    died = run(words, tmp_path, monkeypatch, dies=lambda number: len(enough) > 20, turn=look)
    saved = manifest(died)
    assert not saved.clean or saved.samples == saved.trained
    told = max(json.loads(line)["samples"] for line in died.metrics.read_text().splitlines())
    trained = max(told, saved.trained)  # a checkpoint may have what no beat had told before the replica died
    assert saved.samples > 0
    resumed = RunRequest.read([f"resume={died.root}"]).resumed
    assert resumed is not None
    assert resumed.repeats == trained - saved.samples
    assert f"{saved.samples} of 8000 samples" in resumed.text()
    assert resumed.manifest.done == saved.done


@pytest.mark.parametrize(
    ("words", "kind", "text"),
    [
        (["kpool.n=4", "kpool.k=2"], ConfigError, "kpool.n=4: "),
        (["kpool.mode=gradient"], ConfigError, "kpool.mode=gradient: "),
        (["seed=1"], ConfigError, "seed=1: "),
        (["recipe=smollm2_tools"], ConfigError, "recipe=smollm2_tools: "),
        (["model=smollm2_135m"], ConfigError, "model=smollm2_135m: "),
        (["topology=local"], ConfigError, "topology=local: "),
        (["train.max_steps=3"], ConfigError, "and this run would have 6"),
        (["train.lr=-1"], ConfigError, "train.lr"),
    ],
)
def test_what_would_be_another_training_is_refused_by_name(stopped, words, kind, text):
    with pytest.raises(kind) as refused:
        RunRequest.read([f"resume={stopped.root}", *words])
    assert text in str(refused.value)


def test_other_data_under_the_same_settings_is_noticed(stopped, monkeypatch):
    prepared = asked.prepare
    other = lambda spec, onlooker: replace(prepared(spec, onlooker), fingerprint="0" * 64)  # noqa: E731
    monkeypatch.setattr(asked, "prepare", other)
    with pytest.raises(DataError, match="other data"):
        RunRequest.read([f"resume={stopped.root}"])


def test_what_may_change_does_and_a_directory_or_one_checkpoint_may_be_named(stopped):
    newest = Store(stopped.checkpoints).newest().newest
    assert newest is not None
    for place in (stopped.root, stopped.checkpoints, newest.path):
        request = RunRequest.read([f"resume={place}", "train.lr=0.001", "topology.replicas=3"])
        assert (request.spec.train.lr, request.spec.topology.replicas) == (0.001, 3)
        assert request.resumed is not None
        assert request.resumed.checkpoint == newest.path.name
    assert request.resumed.repeats == 0
    words = "no optimizer state of its own for replica {}: it begins with that of replica 0"
    assert [f"note: {words.format(replica)}" in request.notes() for replica in (0, 1, 2)] == [False, True, True]
    elsewhere = RunRequest.read([f"resume={stopped.root}", "topology.replicas=2", "topology.here=1"])
    assert [note for note in elsewhere.notes() if "replica 1: it begins with that of replica 0" in note]


def with_settings(original: RunPaths, tree: dict, tmp_path) -> RunPaths:
    """A copy of the run as if its launcher had written these settings."""
    copy = RunPaths(tmp_path / "copy")
    shutil.copytree(original.root, copy.root)
    copy.config.write_text(yaml.dump(tree))
    canonical = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    copy.config_hash.write_text(hashlib.sha256(canonical.encode()).hexdigest())
    return copy


@pytest.mark.parametrize("gone", ["random", "converged"])
def test_a_run_whose_routing_has_gone_is_told_what_there_is_and_goes_on_with_that(stopped, tmp_path, gone):
    tree = yaml.safe_load(stopped.config.read_text())
    tree["kpool"]["routing"] = gone
    copy = with_settings(stopped, tree, tmp_path)
    with pytest.raises(ConfigError) as refused:
        RunRequest.read([f"resume={copy.root}"])
    (problem,) = refused.value.problems
    told = f"kpool.routing: found {gone!r}, allowed: round_robin, loss_aware; {gone} has gone: it "
    assert problem.startswith(told)
    request = RunRequest.read([f"resume={copy.root}", "kpool.routing=round_robin"])
    assert request.spec == RunRequest.read([f"resume={stopped.root}"]).spec
    with pytest.raises(ConfigError, match="has gone"):
        read_resolved(copy)  # as a hub does that is to go on from this run's journal


def test_a_run_of_an_earlier_version_is_resumed_and_says_which_settings_have_their_default(stopped, tmp_path):
    tree = yaml.safe_load(stopped.config.read_text())
    del tree["train"]["neftune"], tree["topology"]["spare"]
    copy = with_settings(stopped, tree, tmp_path)
    request = RunRequest.read([f"resume={copy.root}"])
    assert request.spec == RunRequest.read([f"resume={stopped.root}"]).spec
    assert f"note: {copy.root} has no topology.spare, train.neftune yet: the default is taken" in request.notes()


def test_a_place_without_a_checkpoint_is_named_with_what_is_near(stopped, tmp_path):
    problems = {
        f"{stopped.root}x": f"did you mean {stopped.root}?",
        str(tmp_path): "no config.yaml",
    }
    for place, text in problems.items():
        with pytest.raises(ConfigError) as refused:
            RunRequest.read([f"resume={place}"])
        assert text in str(refused.value)
    bare = stopped.root.with_name("29990101-000000-bare")
    shutil.copytree(stopped.root, bare, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(ConfigError) as refused:
        RunRequest.read([f"resume={bare}"])
    assert f"has no checkpoint; {stopped.root} has one" in str(refused.value)
    shutil.rmtree(bare)


def test_a_run_whose_checkpoints_are_all_damaged_says_why(stopped, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(stopped.root, copy)
    for path in copy.glob("checkpoints/v*/anchors.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"anchors.safetensors has .* bytes, not"):
        RunRequest.read([f"resume={copy}"])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Iterator[RunPaths]:
    """A run that was stopped early; no test changes it."""
    with pytest.MonkeyPatch.context() as patch:
        yield run([*STEPS, "train.max_steps=400"], tmp_path_factory.mktemp("stopped"), patch, stop_at=6)
