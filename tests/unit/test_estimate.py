"""What a dry run says of costs: sizes are the real model's, speeds a real run's, and no guess is made."""

from __future__ import annotations

import json

import pytest

from tsugi_cli.config.compose import compose
from tsugi_cli.finetune.lora import add_pool
from tsugi_cli.finetune.model import load, local_folder
from tsugi_cli.launch.estimate import estimate, measured, shapes, sizes_of, tax


@pytest.mark.parametrize("targets", ["all-linear", "[q_proj,v_proj]", ".*layers.0.*up_proj"])
def test_sizes_are_those_of_the_real_model(targets):
    spec = compose(["model=tiny", "kpool.n=4", f"lora.target_modules={targets}"])
    base, _ = load(spec.model)
    whole = sum(each.numel() for each in base.parameters())
    model = add_pool(base, spec.lora)
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    found = sizes_of(shapes(local_folder(spec.model)), spec)
    assert (found.parameters, found.trained) == (whole, trained)


@pytest.mark.parametrize(
    ("speeds", "lost"), [((1.0, 0.25), 0.6), ((1.0, 1.0), 0.0), ((1.0, 1.0, 1.0, 0.25), 1 - 1 / 3.25), ((5.0,), 0.0)]
)
def test_lock_step_is_as_slow_as_its_slowest_replica(speeds, lost):
    assert tax(speeds) == pytest.approx(lost)


def summary(folder, name: str, model: object, busy_s: list[float]) -> None:
    path = folder / name
    path.mkdir()
    replicas = [{"tokens": 1000, "busy_s": each} for each in busy_s]
    (path / "summary.json").write_text(json.dumps({"model": str(model), "replicas": replicas}))


def test_speeds_come_from_the_newest_run_of_the_same_model_and_size(tmp_path):
    spec = compose(["model=tiny", f"runs_dir={tmp_path}", "name=mine"])
    folder = local_folder(spec.model)
    assert measured(spec, folder) is None
    summary(tmp_path, "20260101-000000-mine", folder, [10.0, 40.0])
    summary(tmp_path, "20260102-000000-mine", "another", [1.0, 1.0])
    summary(tmp_path, "20260103-000000-mine", folder, [1.0, 1.0, 1.0])
    (tmp_path / "20260104-000000-mine").mkdir()
    (tmp_path / "20260104-000000-mine" / "summary.json").write_text("{")
    found = measured(spec, folder)
    assert (found.tokens_per_s, found.source) == ((100.0, 25.0), "20260101-000000-mine")
    said = estimate(spec, folder, tokens=12500)
    assert "lose 60% of this fleet: replica 1 is 4.0x slower" in said["straggler tax"]
    assert said["time"].startswith("about 1:40 for 12,500 supervised tokens at 125 tok/s")


def test_speeds_that_are_injected_are_ratios_and_say_nothing_of_time(tmp_path):
    spec = compose(["model=tiny", f"runs_dir={tmp_path}", "fault.slow=[0:2,0:3@30s]", "topology.replicas=2"])
    said = estimate(spec, None, tokens=100)
    assert "replica 0 is 3.0x slower than the fastest (fault.slow)" in said["straggler tax"]
    assert set(said) == {"straggler tax"}, "what is not known is left out"


def test_files_that_are_no_model_say_nothing(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    assert shapes(tmp_path) == {}
    assert estimate(compose(["model=tiny", f"runs_dir={tmp_path}"]), tmp_path, None) == {}
