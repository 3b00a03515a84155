"""The pool is slices of one PEFT LoRA: exact, exportable, and equal to N separate adapters."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.support import kpool, tiny_lora, tiny_model
from tsugi_cli.finetune.export import export
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.errors import ConfigError

IDS = torch.arange(40).reshape(2, 20)


def shake(model, seed=0):
    """Give A and B values that are not their start values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def test_write_then_read_gives_the_same_bits():
    pool = AdapterPool(tiny_lora(kpool()), n=4)
    values = torch.randn(4, pool.size)
    pool.write(values)
    assert torch.equal(pool.read(range(4)), values)
    assert torch.equal(pool.read([2, 0]), values[[2, 0]])


def test_add_touches_only_its_adapters():
    pool = AdapterPool(tiny_lora(kpool()), n=4)
    before = pool.read(range(4))
    pool.add([1, 3], torch.ones(2, pool.size))
    after = pool.read(range(4))
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert torch.equal(after[[1, 3]], before[[1, 3]] + 1)


def test_pool_follows_a_model_whose_storages_were_replaced():
    """model.to(...) gives parameters new storages; the pool must not write into the old ones."""
    model = tiny_lora(kpool())
    pool = AdapterPool(model, n=4)
    model.double().float()
    values = torch.randn(4, pool.size)
    pool.write(values)
    assert torch.equal(AdapterPool(model, n=4).read(range(4)), values)


def test_pool_covers_every_trainable_parameter():
    model = tiny_lora(kpool())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    pool = AdapterPool(model, n=4)
    assert pool.n * pool.size == trainable == sum(p.numel() for p in pool.parameters())


def test_rank_that_cannot_be_shared_is_refused():
    with pytest.raises(ConfigError, match="rank 8, which 3 adapters cannot share"):
        AdapterPool(tiny_lora(kpool()), n=3)


def test_model_without_lora_is_refused():
    with pytest.raises(ConfigError, match="no LoRA adapter"):
        AdapterPool(tiny_model(), n=4)


def test_slices_equal_separate_adapters_summed():
    """N adapters of rank r, each loaded by PEFT on its own, add up to the pool (1e-5)."""
    settings = kpool()
    model = tiny_lora(settings, target_modules=["q_proj", "v_proj"])
    shake(model)
    base = tiny_model()(IDS).logits
    whole = model(IDS).logits
    # Logits are not linear in the adapters, so the sum is taken where it is: in the weights.
    merged = tiny_model()
    weights = dict(merged.named_parameters())
    for adapter in range(settings.n):
        single = get_peft_model(
            tiny_model(),
            LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
        )
        AdapterPool(single, n=1).write(AdapterPool(model, n=settings.n).read([adapter]))
        for name, module in single.get_base_model().named_modules():
            if hasattr(module, "get_delta_weight"):
                weights[f"{name}.weight"].data += module.get_delta_weight("default")
    assert not torch.allclose(whole, base, atol=1e-3)
    torch.testing.assert_close(merged(IDS).logits, whole, atol=1e-5, rtol=0)


def test_export_loads_with_plain_peft_and_gives_the_same_logits(tmp_path):
    """docs/design.md rule 3."""
    model = tiny_lora(kpool())
    shake(model)
    export(model, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter")
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, atol=1e-5, rtol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"], "nothing half written is left"


def test_one_adapter_of_rank_n_times_r_has_the_scaling_of_one_of_rank_r():
    module = tiny_lora(kpool(n=4), rank=2, alpha=24.0).get_base_model().model.layers[0].self_attn.q_proj
    assert module.scaling["default"] == pytest.approx(3.0)
