"""What a dry run says of costs: sizes are the real model's, speeds a real run's, and no guess is made."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tsugi_cli.config.compose import compose
from tsugi_cli.console.format import size
from tsugi_cli.finetune.activations import logit_bytes, shape_of, token_bytes
from tsugi_cli.finetune.lora import add_pool
from tsugi_cli.finetune.model import load, local_folder
from tsugi_cli.launch.estimate import CODED_BITS, activations, estimate, measured, pool_bytes, shapes, sizes_of, tax
from tsugi_cli.launch.lora_sizes import base_bytes, without_module
from tsugi_kpool.core.settings import Payload
from tsugi_kpool.engine.wire import coded_bytes

LORAS = [
    ["lora.target_modules=all-linear"],
    ["lora.target_modules=[q_proj,v_proj]"],
    ["lora.target_modules=.*layers.0.*up_proj"],
    ["lora.target_modules=[q_proj,down_proj]", "lora.layers=[1]"],
    ["lora.target_modules=[q_proj,v_proj]", "lora.layers=[0]", "lora.dora=true"],
    ["lora.target_modules=all-linear", "lora.exclude_modules=[down_proj,layers.0.self_attn.q_proj]"],
    ["lora.target_modules=all-linear", "lora.exclude_modules=.*mlp.*", "lora.dora=true"],
    ["lora.target_modules=all-linear", "lora.modules_to_save=[input_layernorm]"],
]


@pytest.mark.parametrize("words", LORAS, ids=" ".join)
def test_sizes_are_those_of_the_real_model(words):
    spec = compose(["model=tiny", "kpool.n=4", *words])
    base, _ = load(spec.model)
    whole = sum(each.numel() for each in base.parameters())
    model = add_pool(base, spec.lora)
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    found = sizes_of(shapes(local_folder(spec.model)), spec)
    assert (found.parameters, found.trained) == (whole, trained)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_base_takes_as_many_bytes_as_the_real_one(dtype):
    spec = compose(["model=tiny", f"model.dtype={dtype}"])
    base, _ = load(spec.model)
    real = sum(each.numel() * each.element_size() for each in base.parameters())
    found = sizes_of(shapes(local_folder(spec.model)), spec)
    assert found.base_bytes == real
    assert f"base in {dtype}," in estimate(spec, local_folder(spec.model), None)["memory"]


def test_activations_are_those_of_a_micro_batch_of_the_longest_samples():
    """Two samples of 256 tokens on each worker; half of the tokens are supervised."""
    report = {"tokens": 1000, "supervised_tokens": 500, "lengths": [{"up_to": 128, "samples": 9}, {"up_to": 256}]}
    words = ["model=tiny", "topology.device=cpu", "train.micro_batch=4", "topology.workers=2", "data.max_tokens=512"]
    spec, folder = compose(words), local_folder(compose(words).model)
    shape = shape_of(json.loads((folder / "config.json").read_text()))
    expected = 512 * token_bytes(shape, spec.lora.rank, 4, False) + logit_bytes(shape, 256, 4)
    assert activations(spec, folder, report) == (
        f"about {size(expected)} activations of 512 tokens at once (on a CPU up to 1.7 times that)"
    )
    assert "activations of 512 tokens" in estimate(spec, folder, None, report)["memory"]
    for word, tokens in (("train.batch_tokens=2048", "2,048"), ("data.packing=true", "1,024"),
                         ("train.objective=dpo", "512")):  # fmt: skip
        assert f"of {tokens} tokens at once" in activations(compose([*words, word]), folder, report)
    less = activations(compose([*words, "model.gradient_checkpointing=true"]), folder, report)
    assert less != activations(spec, folder, report)
    assert activations(compose([*words, "model.attention=eager"]), folder, report) is None


@pytest.mark.parametrize(("optimizer", "copies"), [("adamw", 2), ("adamw_8bit", 0.5), ("lion", 1), ("adafactor", 0)])
def test_the_optimizer_counts_by_its_moments(optimizer, copies):
    spec = compose(["model=tiny", "kpool.mode=local", "train.optimizer=adamw"])
    other = replace(spec, train=replace(spec.train, optimizer=optimizer))
    assert pool_bytes(spec, 1000) - pool_bytes(other, 1000) == 4000 * (2 - copies)


LLAMA = {"embed_tokens.weight": (1000, 64), "layers.0.q_proj.weight": (128, 64), "norm.weight": (64,)}


@pytest.mark.parametrize(
    ("quantize", "linear"), [("4bit", 128 * 64 * (4 + 1 / 8 + 1 / 512) / 8), ("8bit", 128 * 64 + 128 * 4)]
)
def test_a_quantised_base_has_its_linear_layers_in_fewer_bits(quantize, linear):
    """The others, and all where the format is not said, are in 16: it needs a GPU."""
    model = replace(compose(["model=tiny"]).model, quantize=quantize)
    assert base_bytes(LLAMA, model, "bfloat16") == round(2 * (64_000 + 64) + linear)


@pytest.mark.parametrize(
    ("device", "said"), [("cpu", "base in float32,"), ("cuda", "base in bfloat16,"), ("auto", "on a GPU)")]
)
def test_a_format_that_the_device_decides_is_said_as_far_as_it_is_known(device, said):
    spec = compose(["model=tiny", "model.dtype=auto", f"topology.device={device}"])
    assert said in estimate(spec, local_folder(spec.model), None)["memory"]


def test_a_head_that_is_tied_to_the_embedding_says_nothing():
    spec = compose(["model=tiny", "lora.modules_to_save=[lm_head]"])
    assert sizes_of(shapes(local_folder(spec.model)), spec) is None, "it has no tensor of its own in the files"


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


def test_bytes_of_a_round_are_those_of_the_way_that_it_takes(tmp_path):
    spec = compose(["model=tiny", f"runs_dir={tmp_path}", "topology.replicas=4"])
    said = estimate(spec, local_folder(spec.model), None)["payload"]
    assert "summed in two stages: it sends" in said
    spec = compose(["model=tiny", f"runs_dir={tmp_path}", "topology.replicas=4", "kpool.reduce=gather"])
    assert estimate(spec, local_folder(spec.model), None)["payload"].endswith("to each of 3 other(s)")


def test_files_that_are_no_model_say_nothing(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    assert shapes(tmp_path) == {}
    assert estimate(compose(["model=tiny", f"runs_dir={tmp_path}"]), tmp_path, None) == {}


@pytest.mark.parametrize("payload", Payload)
def test_a_payload_has_the_size_that_goes_over_the_wire(payload):
    assert CODED_BITS[payload] / 8 * (1 << 20) == coded_bytes(1 << 20, payload)


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ("[q_proj,v_porj]", "no module in the model's files is called v_porj; did you mean v_proj?"),
        ("[wholly_else]", "no module in the model's files is called wholly_else; there are "),
        ("(q|v)_.*", "no module in the model's files matches the pattern '(q|v)_.*'"),
        ("[]", "lora.target_modules is empty"),
        ("", "lora.target_modules is empty"),
    ],
)
def test_a_target_module_that_the_model_has_not_is_noted_before_anything_starts(modules, said):
    """PEFT trains without it and says nothing, or fails in every worker after the data have been prepared."""
    spec = compose(["model=tiny", f"lora.target_modules={modules}"])
    (note,) = without_module(shapes(local_folder(spec.model)), spec.lora)
    assert said in note


@pytest.mark.parametrize("modules", ["all-linear", "[q_proj,lm_head]", "[layers.0.self_attn.q_proj]", ".*q_proj"])
def test_nothing_is_noted_of_target_modules_that_are_there_or_cannot_be_known(modules):
    spec = compose(["model=tiny", f"lora.target_modules={modules}"])
    assert without_module(shapes(local_folder(spec.model)), spec.lora) == []
    assert without_module({}, spec.lora) == []
