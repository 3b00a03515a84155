"""`KPoolLoraConfig`: mistakes, copies, and that what PEFT makes of it is plain PEFT."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import warnings

import peft
import pytest
import torch
import yaml
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model

from tests.library import batch, config, pooled_model
from tests.support import tiny_model
from tsugi_kpool import ConfigError, KPoolLoraConfig, plesio_init
from tsugi_kpool.core.settings import Payload, Routing, Trigger


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"r": 0}, ["r must be at least 1, found 0"]),
        ({"r": 2.5}, ["r must be a whole number"]),
        ({"n_adapters": 2, "k_active": 3}, ["k_active must not exceed n_adapters"]),
        ({"k_active": 0}, ["k_active must be at least 1"]),
        ({"n_adapters": True}, ["n_adapters must be a whole number"]),
        ({"lora_alpha": -1}, ["lora_alpha must be positive"]),
        ({"lora_alpha": float("nan")}, ["lora_alpha must be a number"]),
        ({"buffer_convergence_eps": 0}, ['buffer_convergence_eps must be positive or "auto"']),
        ({"buffer_convergence_eps": "often"}, ['buffer_convergence_eps must be a number or "auto"']),
        ({"sideband_addr": "udp://here:1"}, ["sideband_addr must have the form tcp://host:port"]),
        ({"sideband_addr": "tcp://here"}, ["sideband_addr"]),
        ({"sideband_addr": "tcp://here:70000"}, ["sideband_addr"]),
        ({"trigger": "never"}, ["trigger must be one of convergence, count"]),
        ({"payload": "int3", "routing": "x"}, ["payload must be one of fp32, bf16, int8", "routing must be one of"]),
        (
            {"routing": "random"},
            ["routing must be one of round_robin, loss_aware, found 'random'; random has gone: it was a control"],
        ),
        ({"max_steps": 1}, ["max_steps must be at least", "count must lie in"]),
        ({"round_timeout_s": 0}, ["round_timeout_s must be positive"]),
        ({"mode": "both"}, ["mode must be one of local, gradient"]),
        ({"overlap": 1}, ["overlap must be True or False"]),
        ({"mode": "gradient", "max_staleness": 1}, ["max_staleness must be at least n / k = 2 in gradient mode"]),
        ({"trust_network": "no", "error_feedback": 1}, ["error_feedback must be True", "trust_network must be True"]),
        ({"target_modules": 3}, ["target_modules must be names of modules, a pattern or None, found 3"]),
        ({"target_modules": ["q_proj", 3]}, ["target_modules must be names"]),
        (
            {"payload": [], "mode": None},
            ["payload must be one of", "mode must be one of"],
        ),
        ({"made_of": "N"}, ["made_of is written by the config itself, found 'N'"]),
        ({"grad_clip": 0.0, "mode": "gradient"}, ["grad_clip must be a positive number or None"]),
        ({"grad_clip": 1.0}, ["grad_clip is of gradient mode"]),
        (
            {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 4}},
            ["rank_pattern cannot", "alpha_pattern cannot"],
        ),
        ({"init_lora_weights": "pissa"}, ["init_lora_weights='pissa' cannot be used with a pool"]),
        (
            {"k_active": 9, "use_bdlora": {"x": 1}, "sideband_addr": "x"},
            ["k_active", "sideband_addr", "use_bdlora"],
        ),
    ],
)
def test_all_mistakes_at_once(changes, texts):
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    assert len(caught.value.problems) == len(texts)
    for problem, text in zip(caught.value.problems, texts, strict=True):
        assert text in problem


def test_settings_are_those_of_one_adapter():
    settings = config(
        buffer_convergence_eps=0.5, trigger="count", payload="bf16", routing="loss_aware", error_feedback=False
    ).settings()
    assert (settings.n, settings.k, settings.eps) == (4, 2, 0.5)
    assert (settings.trigger, settings.payload, settings.routing) == (Trigger.COUNT, Payload.BF16, Routing.LOSS_AWARE)
    assert not settings.error_feedback


def test_the_defaults_are_the_command_lines():
    from pathlib import Path

    text = (Path(__file__).parents[2] / "conf" / "kpool" / "default.yaml").read_text(encoding="utf-8")
    shipped = yaml.safe_load(text)
    ours = dataclasses.asdict(KPoolLoraConfig(target_modules="all-linear").settings())
    assert {name: ours[name] for name in shipped} == shipped


COPIES = {
    "replace": dataclasses.replace,
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda each: pickle.loads(pickle.dumps(each)),  # noqa: S301
    "dict": lambda each: KPoolLoraConfig(**each.to_dict(), n_adapters=4),
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("rslora", [False, True])
def test_a_copy_is_the_same_pool(make, rslora):
    first = config(use_rslora=rslora)
    second = make(make(first))
    assert (second.r, second.lora_alpha, second.adapter_r, second.adapter_alpha) == (
        8, first.lora_alpha, 2, 4,
    )  # fmt: skip


def written(values: dict, how: str) -> dict:
    """Through a file and back, as plain PEFT's fields must be written, too: no sets, no enumerations."""
    values = {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}
    values["peft_type"] = str(values["peft_type"].value)
    if how == "json":
        return json.loads(json.dumps(values))
    return yaml.safe_load(yaml.safe_dump(values)) if how == "yaml" else values


@pytest.mark.parametrize("how", ["dict", "json", "yaml"])
@pytest.mark.parametrize("changes", [{}, {"use_rslora": True, "lora_alpha": 3}, {"n_adapters": 8, "r": 16}])
def test_fields_that_are_written_down_and_read_back_are_the_same_pool(how, changes):
    first = config(**changes)
    second = KPoolLoraConfig(**written(dataclasses.asdict(first), how))
    third = KPoolLoraConfig(**written(dataclasses.asdict(second), how))
    for again in (second, third):
        assert (again.r, again.lora_alpha, again.made_of) == (first.r, first.lora_alpha, first.made_of)
        assert again.settings() == first.settings()
        assert dataclasses.replace(again, n_adapters=2).r == 2 * first.adapter_r


def test_what_is_changed_in_the_file_is_one_adapters():
    values = written(dataclasses.asdict(config()), "json")
    assert KPoolLoraConfig(**{**values, "r": 5}).adapter_r == 5
    assert KPoolLoraConfig(**{**values, "lora_alpha": 5}).adapter_alpha == 5
    more = KPoolLoraConfig(**{**values, "n_adapters": 8})
    assert (more.r, more.adapter_r, more.adapter_alpha) == (16, 2, 4)
    assert dataclasses.replace(config(), r=8).r == 32, "a plain number is one adapter's"


@pytest.mark.parametrize(
    ("changes", "r", "alpha"),
    [({"n_adapters": 8}, 16, 32), ({"r": 4}, 16, 16), ({"r": 8}, 32, 16), ({"use_rslora": True}, 8, 8.0)],
)
def test_replace_takes_one_adapters_numbers(changes, r, alpha):
    changed = dataclasses.replace(config(), **changes)
    assert (changed.r, changed.lora_alpha) == (r, alpha)


@pytest.mark.parametrize("name", ["r", "lora_alpha", "n_adapters"])
def test_assigning_is_noticed(name):
    changed = config()
    setattr(changed, name, 3)
    with pytest.raises(ConfigError, match=r"dataclasses\.replace"):
        changed.settings()


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 4 / 2), (True, 4 / 2**0.5)])
def test_the_scaling_is_one_adapters(rslora, scaling):
    model = get_peft_model(tiny_model(), config(use_rslora=rslora))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == pytest.approx(scaling, rel=1e-12)
    assert layer.lora_A["default"].weight.shape[0] == 8


def test_a_saved_adapter_is_plain_peft(tmp_path):
    model = pooled_model(config())
    expected = model(input_ids=batch(0)).logits
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of keys that it does not know
        saved = PeftConfig.from_pretrained(tmp_path)
        again = PeftModel.from_pretrained(tiny_model(), tmp_path)
    assert type(saved) is LoraConfig
    assert (saved.r, saved.lora_alpha) == (8, 16)
    assert torch.equal(again(input_ids=batch(0)).logits, expected)


@pytest.mark.parametrize("rslora", [False, True])
def test_a_saved_adapter_can_be_a_pool_again(tmp_path, rslora):
    first = config(use_rslora=rslora)
    first.save_pretrained(str(tmp_path))
    again = KPoolLoraConfig.from_pretrained(str(tmp_path), n_adapters=4, k_active=1)
    assert isinstance(again, KPoolLoraConfig)
    assert (again.r, again.adapter_r, again.k_active) == (8, 2, 1)
    assert again.lora_alpha == pytest.approx(first.lora_alpha, rel=1e-12)
    with pytest.raises(ConfigError, match="cannot be shared evenly"):
        KPoolLoraConfig.from_pretrained(str(tmp_path), n_adapters=3)


@dataclasses.dataclass
class Four(KPoolLoraConfig):
    """Somebody's own default."""

    n_adapters: int = 4


def test_a_subclass_reads_a_saved_adapter_as_its_own_pool(tmp_path):
    config(r=4).save_pretrained(str(tmp_path))
    again = Four.from_pretrained(str(tmp_path))
    assert (type(again), again.r, again.n_adapters, again.adapter_r) == (Four, 16, 4, 4)


@pytest.mark.parametrize("changes", [{"n_adapters": 2, "r": 4, "lora_alpha": 8}, {"lora_alpha": 8}])
def test_another_pool_of_the_same_rank_is_refused(changes):
    model = pooled_model(config())
    with pytest.raises(ConfigError, match=r"built as a pool of .*lora_alpha=4 \(found 8\)"):
        plesio_init(model, config(**changes))


def test_peft_knows_every_field_that_is_refused():
    """A renamed field of LoraConfig would be refused no more."""
    from tsugi_kpool.library.lora_checks import REFUSED

    assert peft.__version__
    assert set(REFUSED) <= {each.name for each in dataclasses.fields(LoraConfig)}
