"""`model.*` and `topology.device` where they meet torch."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from tests.library import batch, trained
from tests.support import kpool, tiny_lora
from tsugi_cli.config.compose import compose
from tsugi_cli.config.spec import Model
from tsugi_cli.finetune import workers
from tsugi_cli.finetune.lora import add_pool
from tsugi_cli.finetune.model import _arguments, load
from tsugi_cli.finetune.precision import LossScale, asks_for_checkpointing, dtype_of
from tsugi_cli.finetune.workers import CPU, checkpoint_activations, compiled, device_of
from tsugi_kpool.errors import MachineError

TINY = Model(source="tiny", path=None, package=None, file=None, dtype="auto")
ALONE = SimpleNamespace(workers=1, local=0)
TWO = SimpleNamespace(workers=2, local=1)


def changed(**values) -> Model:
    return dataclasses.replace(TINY, **values)


def loss_of(model) -> torch.Tensor:
    return model(input_ids=batch(0), labels=batch(0)).loss


def test_the_format_follows_the_device(monkeypatch):
    cuda = torch.device("cuda", 0)
    assert dtype_of("auto", CPU) is torch.float32
    assert dtype_of("float16", CPU) is torch.float16
    for has_bf16, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bf16: has)
        assert dtype_of("auto", cuda) is dtype


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
def test_a_model_is_loaded_as_asked(dtype, attention):
    base, _ = load(changed(dtype=dtype, attention=attention))
    assert base.dtype is dtype_of(dtype, CPU)
    assert attention in ("auto", base.config._attn_implementation)


def test_what_transformers_is_told_on_a_gpu():
    cuda = torch.device("cuda", 1)
    told = _arguments(changed(quantize="4bit", dtype="bfloat16", revision="v2", trust_remote_code=True), cuda)
    bits = told["quantization_config"]
    assert (bits.load_in_4bit, bits.bnb_4bit_quant_type, bits.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert bits.bnb_4bit_compute_dtype is torch.bfloat16
    assert (told["device_map"], told["revision"], told["trust_remote_code"]) == ({"": cuda}, "v2", True)
    assert _arguments(changed(quantize="8bit", dtype="bfloat16"), cuda)["quantization_config"].load_in_8bit


def test_a_base_in_4_bits_on_a_cpu_is_the_same_after_it_was_asked():
    """Where a CPU has AVX-512, bitsandbytes packs weights anew: that changes them, and fails for this model."""
    pytest.importorskip("bitsandbytes")
    model = add_pool(load(changed(quantize="4bit"))[0], compose(["model=tiny"]).lora)
    base = [each for each in model.parameters() if not each.requires_grad]
    before = [each.clone() for each in base]
    model.train()
    taught = loss_of(model)
    model.eval()
    with torch.inference_mode():
        asked = loss_of(model)
    assert float(asked) == pytest.approx(float(taught), rel=1e-5)
    loss_of(model.train()).backward()
    assert all(torch.equal(one, other) for one, other in zip(before, base, strict=True))
    assert any(each.grad.abs().max() > 0 for each in model.parameters() if each.requires_grad)
    plain = loss_of(load(TINY)[0])
    assert 0 < abs(float(plain) - float(taught)) < 0.05


def test_activations_that_are_computed_again_give_the_same_gradients():
    plain, again = (tiny_lora(kpool()).train() for _ in range(2))
    assert not checkpoint_activations(plain, changed(gradient_checkpointing="auto"), CPU)
    assert checkpoint_activations(again, changed(gradient_checkpointing=True), CPU)
    for model in (plain, again):
        loss_of(model).backward()
    for one, other in zip(trained(plain), trained(again), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_gpus_memory_may_ask_for_it():
    assert not asks_for_checkpointing(10, None), "a CPU's memory is the machine's"
    assert asks_for_checkpointing(16 << 30, 24 << 30)
    assert not asks_for_checkpointing(16 << 30, 80 << 30)


def test_a_compiled_model_shares_the_parameters(monkeypatch):
    model = tiny_lora(kpool())
    assert compiled(model, TINY) is model
    monkeypatch.setattr(torch, "compile", lambda module: torch._dynamo.optimize("eager")(module))
    loss_of(compiled(model, changed(compile=True))).backward()
    assert all(each.grad is not None for each in trained(model))


@pytest.mark.parametrize("on", [False, True])
def test_a_scaled_loss_gives_the_same_gradients(on):
    plain, scaled = (tiny_lora(kpool()).train() for _ in range(2))
    loss_of(plain).backward()
    scale = LossScale(trained(scaled), CPU, on)
    scale.backward(loss_of(scaled))
    scale.done()
    for one, other in zip(trained(plain), trained(scaled), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4)


def test_gradients_that_are_too_large_are_left_out_and_the_next_are_scaled_less():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    scale = LossScale([parameter], CPU, on=True)
    scale.backward(parameter.sum() * 1e36)  # times 65,536 it is infinite
    scale.done()
    assert (parameter.grad, scale.skipped) == (None, 1)
    optimizer.step()
    assert float(parameter.detach()) == 1.0
    scale.backward(parameter.sum())
    scale.done()
    assert (float(parameter.grad), scale.skipped) == (1.0, 1)


def accelerator(monkeypatch, kind: str | None, count: int = 2) -> list[int]:
    """A machine with so many devices of a kind; the list of those that were made the current one."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda device: chosen.append(device.index))
    return chosen


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_auto_takes_what_torch_finds_and_replicas_share_it_out(monkeypatch, kind):
    chosen = accelerator(monkeypatch, kind)
    assert [device_of(ALONE, replica).index for replica in range(3)] == [0, 1, 0] == chosen
    assert device_of(ALONE, 0, kind).type == kind
    assert device_of(ALONE, 0, "cpu") == CPU


def test_what_is_not_there_is_said(monkeypatch):
    accelerator(monkeypatch, None)
    assert device_of(TWO, 0) == CPU
    with pytest.raises(MachineError, match=r"topology.device=cuda: torch finds no accelerator"):
        device_of(ALONE, 0, "cuda")
    accelerator(monkeypatch, "mps", count=1)
    with pytest.raises(MachineError, match=r"topology.device=cuda: torch finds mps on this machine"):
        device_of(ALONE, 0, "cuda")
    with pytest.raises(MachineError, match=r"topology.workers=2 needs cuda or cpu, found mps"):
        device_of(TWO, 0)
    accelerator(monkeypatch, "cuda", count=1)
    with pytest.raises(MachineError, match="needs as many GPUs on this machine, found 1"):
        device_of(TWO, 0)


def test_a_quantised_base_stays_where_it_was_loaded():
    moved = []
    model = SimpleNamespace(hf_quantizer=object(), to=moved.append)
    assert workers.spread(model, "ddp", SimpleNamespace(workers=1), CPU) is model
    assert moved == []
