"""PiSSA and OLoRA: the LoRA begins with a part of the base weights, and what is exported is for whole ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import PeftModel

from tests.engine.test_lora_options import N, averaged, lora, steps
from tests.library import batch, trained
from tests.support import tiny_model
from tsugi_cli.config.spec import OUT_OF_THE_BASE
from tsugi_cli.finetune import start
from tsugi_cli.finetune.export import export
from tsugi_cli.finetune.lora import add_pool, start_of, unchanged
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.errors import ConfigError

KINDS = [(kind, rslora) for kind in OUT_OF_THE_BASE for rslora in (False, True)]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=batch(0)).logits


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.fixture(scope="module", params=KINDS, ids=lambda each: f"{each[0]}-{'rs' if each[1] else 'plain'}")
def run(request, tmp_path_factory):
    """Settings, the file of start values, and a replica that has trained and been averaged with another one."""
    settings = lora(init=request.param[0], rslora=request.param[1], dropout=0.1)
    file = tmp_path_factory.mktemp("run") / "start.safetensors"
    replicas = [add_pool(tiny_model(), settings, file) for _ in range(2)]
    close(logits(replicas[0]), logits(tiny_model()))  # training begins at the base model
    before = [each.detach().clone() for each in trained(replicas[0])]
    for seed, model in enumerate(replicas):
        steps(model, 4, seed)
    averaged(*replicas)
    close(logits(replicas[0]), logits(replicas[1]))
    assert all((one != other).any() for one, other in zip(before, trained(replicas[0]), strict=True))
    return settings, file, replicas[0]


@pytest.mark.filterwarnings("ignore")
def test_the_exported_adapter_is_for_the_models_own_weights(run, tmp_path):
    settings, file, model = run
    export(model, tmp_path / "adapter", start=file)
    plain = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter")
    assert (logits(model) - logits(tiny_model())).abs().max() > 1e-2, "it has learnt something"
    close(logits(plain), logits(model))
    config = plain.peft_config["default"]
    assert (config.r, config.init_lora_weights) == (2 * settings.rank, True)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoints_values_are_for_the_models_own_weights_too(run):
    """Also where the file of start values is gone: they are computed again."""
    settings, file, model = run
    anchors = AdapterPool(model, N).read(range(N))
    for kept in (file, file.with_name("gone")):
        again = add_pool(tiny_model(), unchanged(settings))
        AdapterPool(again, N).write(anchors)
        found = start.on_its_own_weights(again, settings, kept)
        close(logits(found), logits(model))
        with found.disable_adapter():
            torch.testing.assert_close(logits(found), logits(tiny_model()), atol=0, rtol=0)


@pytest.fixture
def computed(monkeypatch) -> list[str]:
    """Every computation of start values, by its kind."""
    found: list[str] = []
    original = start._computed

    def computing(model, kind):
        found.append(kind)
        return original(model, kind)

    monkeypatch.setattr(start, "_computed", computing)
    return found


def test_start_values_are_computed_once_and_every_replica_has_the_same_bits(tmp_path, computed):
    file = tmp_path / "start"
    one, other = (add_pool(tiny_model(), lora(init="pissa"), file) for _ in range(2))
    assert computed == ["pissa"]
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_resumed_run_takes_those_of_the_run_that_it_goes_on_from(tmp_path, computed):
    add_pool(tiny_model(), lora(init="olora"), tmp_path / "first")
    add_pool(tiny_model(), lora(init="olora"), tmp_path / "resumed", earlier=tmp_path / "first")
    assert computed == ["olora"]
    add_pool(tiny_model(), lora(init="olora"), tmp_path / "elsewhere", earlier=tmp_path / "not on this machine")
    assert computed == ["olora", "olora"]


def test_replicas_compare_what_they_begin_with(tmp_path):
    digests = set()
    for kind in ("pissa", "olora"):
        settings = lora(init=kind)
        add_pool(tiny_model(), settings, tmp_path / kind)
        digests.add(start_of(settings, tmp_path / kind))
    assert len({*digests, start_of(lora(), tmp_path / "none")}) == 3


def test_torchs_random_numbers_are_the_same_for_who_computes_and_who_reads(tmp_path):
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        add_pool(tiny_model(), lora(init="pissa_niter_16"), tmp_path / "start")
        drawn.append(torch.rand(4))
    assert torch.equal(*drawn)


def test_a_base_in_half_precision_stays_in_it(tmp_path):
    model = add_pool(tiny_model().to(torch.bfloat16), lora(init="pissa"), tmp_path / "start")
    frozen = {each.dtype for each in model.parameters() if not each.requires_grad}
    assert (frozen, {each.dtype for each in trained(model)}) == ({torch.bfloat16}, {torch.float32})
    assert logits(model).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rank": 32}, r"lora.rank must not exceed 16, the size of .*v_proj"),
        ({"target_modules": ["embed_tokens"]}, "embeddings take no such start values"),
    ],
)
def test_what_takes_no_such_values_is_named(changes, told):
    with pytest.raises(ConfigError, match=told):
        add_pool(tiny_model(), replace(lora(init="pissa"), **changes))
