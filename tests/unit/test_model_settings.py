"""`model.*` and `topology.device`: what is wrong is said before anything starts."""

from __future__ import annotations

import json

import pytest

from tests.unit.test_compose import mistake, mistakes
from tsugi_cli.config import files
from tsugi_cli.config.compose import compose
from tsugi_cli.launch.consent import asked
from tsugi_kpool import system

TINY = ("model=tiny",)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_a_folder_must_hold_a_model(tmp_path, model):
    assert compose([f"model={model}"]).model.path == str(model)
    (tmp_path / "empty").mkdir()
    assert mistake(f"model={tmp_path}/empty").endswith("/empty holds no model: there is no config.json in it")
    assert mistake(f"model={model}s").endswith(f"no such directory: {model}s; did you mean {model}?")


def test_an_adapter_is_no_model_and_the_line_says_what_to_write(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    told = mistake(f"model={tmp_path}/")
    assert "is an adapter, not a model; to train it further: model=BASE lora.from=" in told


def test_a_gguf_file_is_a_model(tmp_path):
    file = tmp_path / "some.gguf"
    file.write_bytes(b"GGUF")
    built = compose([f"model={file}"]).model
    assert (built.source, built.path) == ("gguf", str(file))
    assert f"a GGUF file is named itself: model={tmp_path}/some.gguf" in mistake(f"model={tmp_path}")
    assert "no such file" in mistake(f"model={tmp_path}/none.gguf")
    file.write_bytes(b"version https://git-lfs")
    assert mistake(f"model={file}") == f"model.path: {file} is no GGUF file: it begins with b'vers'"


def test_two_models_at_once_contradict_each_other():
    told = mistake(*TINY, "model.path=foo")
    assert told == "model.path=foo and model.source=tiny contradict each other: write model=foo alone"


def test_a_revision_is_of_the_hub(model):
    assert compose(["model=a/b", "model.revision=v2"]).model.revision == "v2"
    assert "model.revision is of a model on the hub" in mistake(*TINY, "model.revision=v2")


def test_8_bits_without_a_gpu_are_refused_before_anything_starts(monkeypatch):
    monkeypatch.setattr(files, "has_gpu", lambda: False)
    told = mistake(*TINY, "model.quantize=8bit")
    assert told == "model.quantize=8bit needs a GPU, and this machine has none; 4bit or none train without"
    assert compose([*TINY, "model.quantize=8bit", "topology.here=0"]), "a hub alone holds no model"


def test_4_bits_need_the_package_and_no_gpu(monkeypatch):
    monkeypatch.setattr(files, "has_gpu", lambda: False)
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    assert "pip install 'tsugi[quant]'" in mistake(*TINY, "model.quantize=4bit")
    monkeypatch.setattr(files, "find_spec", lambda name: object())
    assert compose([*TINY, "model.quantize=4bit"]).model.quantize == "4bit"


def test_a_package_that_is_missing_is_named_with_the_line_that_brings_it(monkeypatch):
    monkeypatch.setattr(files, "has_gpu", lambda: True)
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    words = ("model.quantize=4bit", "model.liger=true", "model.attention=flash_attention_2")
    told = "\n".join(mistakes(*TINY, *words))
    for line in ("pip install 'tsugi[quant]'", "pip install 'tsugi[liger]'", "pip install flash-attn"):
        assert line in told
    assert "needs a GPU" in mistake(*TINY, "model.quantize=8bit", "topology.device=cpu")


def test_a_gpu_is_one_whose_driver_is_there_and_that_may_be_seen(tmp_path, monkeypatch):
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(system, "GPU_DEVICES", (str(tmp_path / "none"),))
    assert not system.has_gpu()
    monkeypatch.setattr(system, "GPU_DEVICES", (str(tmp_path),))
    assert system.has_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not system.has_gpu()


def test_what_shards_cannot_do():
    shards = (*TINY, "train.micro_batch=2", "topology.workers=2", "topology.inside=fsdp2")
    assert "cannot be used with topology.inside=fsdp2" in mistake(*shards, "model.dtype=float16")
    assert compose([*shards, "model.dtype=bfloat16"])


def test_who_joins_is_asked_before_a_models_code_is_run():
    keys = [each.key for each in asked(compose([*TINY, "model.trust_remote_code=true"]))]
    assert keys == ["model.trust_remote_code"]
    assert asked(compose(TINY)) == ()


def test_what_a_system_without_proc_answers(monkeypatch, tmp_path):
    monkeypatch.setattr(system, "DESCRIPTORS", ())
    assert system.own_descriptors() is None
    gone = 2**22 + 1  # above every process number of Linux
    assert system.children_of(gone) == []
    assert (system.environment_of(gone), system.ended_by(gone)) == (None, None)


def test_a_pattern_below_a_home_that_nobody_has_matches_nothing():
    assert mistake(*TINY, "data=~nobody_of_that_name/*.jsonl").startswith("data.path: no file matches")
