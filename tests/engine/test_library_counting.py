"""What a step weighs: every batch that was trained on counts, once, and nothing that was not."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from tests.library import Pair, batch, config, digest, pooled_model, session_of_one, trained
from tests.support import tiny_model
from tsugi_kpool import ConfigError
from tsugi_kpool.library.weighing import Weigher

TEXT = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip


def sequence_classifier(labels: int = 3):
    torch.manual_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(**TEXT, num_labels=labels, pad_token_id=0)).eval()


def image_classifier():
    torch.manual_seed(0)
    shape = {"image_size": 8, "patch_size": 4, "num_labels": 3}
    return ViTForImageClassification(
        ViTConfig(**{k: v for k, v in TEXT.items() if k != "vocab_size"}, **shape)
    ).eval()


def token_classifier():
    torch.manual_seed(0)
    return BertForTokenClassification(BertConfig(**TEXT, num_labels=3)).eval()


def translator():
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(**shape, decoder_start_token_id=0)).eval()


class Features(torch.nn.Module):
    """A model of somebody's own: another keyword, and a loss that the loop computes."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj = torch.nn.Linear(32, 32), torch.nn.Linear(32, 3)

    def forward(self, hidden_states):
        return self.v_proj(torch.relu(self.q_proj(hidden_states)))


IDS = batch(0)  # [2, 12]
MASK = torch.ones_like(IDS)
MASK[:, :5] = 0
SOME = IDS.clone()
SOME[:, :6] = -100
EMBEDS = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0))
PICTURE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CALLS = {
    "labels": (tiny_model, {"input_ids": IDS, "labels": SOME}, 12, 2),
    "no-labels": (tiny_model, {"input_ids": IDS}, 24, 2),
    "attended": (tiny_model, {"input_ids": IDS, "attention_mask": MASK}, 14, 2),
    "embeds": (tiny_model, {"inputs_embeds": EMBEDS}, 24, 2),
    "embeds-mask": (tiny_model, {"attention_mask": MASK, "inputs_embeds": EMBEDS}, 14, 2),
    "embeds-labels": (tiny_model, {"inputs_embeds": EMBEDS, "labels": SOME}, 12, 2),
    "one-class": (sequence_classifier, {"input_ids": IDS[:1], "labels": torch.tensor([2])}, 1, 1),
    "column-of-classes": (sequence_classifier, {"input_ids": IDS, "labels": torch.tensor([[2], [0]])}, 2, 2),
    "regression": (sequence_classifier, {"input_ids": IDS[:1], "labels": torch.tensor([0.5])}, 1, 1),
    "many-targets": (sequence_classifier, {"input_ids": IDS, "labels": torch.rand(2, 3)}, 2, 2),
    "picture": (image_classifier, {"pixel_values": PICTURE, "labels": torch.tensor([1])}, 1, 1),
    "picture-without": (image_classifier, {"pixel_values": PICTURE}, 1, 1),
    "token-classes": (token_classifier, {"input_ids": IDS, "labels": SOME}, 12, 2),
    "translation": (translator, {"input_ids": IDS, "labels": IDS[:, :7]}, 14, 2),
    "features": (Features, {"hidden_states": EMBEDS}, 24, 2),
    "rows-of-features": (Features, {"hidden_states": EMBEDS[:, 0]}, 2, 2),
}


@pytest.mark.parametrize(("base", "call", "tokens", "samples"), CALLS.values(), ids=CALLS)
def test_a_call_weighs_what_its_labels_are(base, call, tokens, samples):
    weigher = Weigher(base())
    found = weigher.weigh((), call)
    assert (int(found.tokens), found.samples) == (tokens, samples)
    assert found.worked >= found.samples


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: get_peft_model(model, LoraConfig(r=2))])
def test_arguments_without_names_are_known_by_their_places(wrap):
    weigher = Weigher(wrap(tiny_model()))
    assert int(weigher.weigh((IDS, MASK), {}).tokens) == 14
    assert int(weigher.weigh((IDS,), {"labels": SOME}).tokens) == 12
    assert int(weigher.weigh(({"input_ids": IDS, "labels": SOME},), {}).tokens) == 12


LOOPS = {
    "one-class": (sequence_classifier, CALLS["one-class"][1], 1),
    "picture": (image_classifier, CALLS["picture"][1], 1),
    "embeds": (tiny_model, {"inputs_embeds": EMBEDS}, 24),
    "features": (Features, {"hidden_states": EMBEDS}, 24),
}


def loss_of(output):
    if isinstance(output, torch.Tensor):
        return output.square().mean()
    return output.loss if output.loss is not None else output.logits.square().mean()


@pytest.mark.parametrize("mode", ["local", "gradient"])
@pytest.mark.parametrize(("base", "call", "tokens"), LOOPS.values(), ids=LOOPS)
def test_what_has_been_trained_is_there_after_closing(tmp_path, mode, base, call, tokens):
    settings = config(mode=mode, payload="fp32", min_steps=1)
    model = pooled_model(settings, base)
    before = [parameter.detach().clone() for parameter in trained(model)]
    with session_of_one(tmp_path / "keys", model, settings) as session:
        optimizer = torch.optim.SGD(trained(model), lr=0.5)
        for _ in range(3):
            loss_of(model(**call)).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert session.engine.progress.tokens == 3 * tokens
    assert any(bool((a != b).any()) for a, b in zip(before, trained(model), strict=True))


def backward(model, rows: int = 2, labels: torch.Tensor | None = None) -> None:
    ids = batch(0, rows)
    model(input_ids=ids, labels=ids if labels is None else labels).loss.backward()


def in_the_middle(model) -> None:
    """A backward pass that fails, as one that finds no memory."""

    def fails(_gradient):
        raise MemoryError("in the middle")

    ids = batch(0, 8)
    output = model(input_ids=ids, labels=ids, output_hidden_states=True)
    output.hidden_states[1].register_hook(fails)
    output.loss.backward()


def in_forward(model) -> None:
    model(input_ids=torch.full((8, 12), 64))  # no such token


def after_it(model) -> None:
    backward(model, 8)
    raise MemoryError("afterwards")


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("fails", [in_forward, in_the_middle, after_it])
def test_a_batch_that_failed_is_charged_to_nobody(tmp_path, fails, to_none):
    """The loop catches it, clears the gradients and goes on with smaller batches."""
    settings = config()
    model = pooled_model(settings)
    with session_of_one(tmp_path / "keys", model, settings) as session:
        optimizer = torch.optim.AdamW(trained(model), lr=1e-3)
        backward(model)
        optimizer.step()
        optimizer.zero_grad()
        with pytest.raises((MemoryError, IndexError)):
            fails(model)
        optimizer.zero_grad(set_to_none=to_none)
        backward(model)
        optimizer.step()
        assert session.engine.progress.tokens == 2 * 22


def test_what_nobody_called_backward_on_counts_nothing(tmp_path):
    """An evaluation that has forgotten no_grad, and a batch whose gradients the loop thinks better of."""
    settings = config()
    model = pooled_model(settings)
    with session_of_one(tmp_path / "keys", model, settings) as session:
        optimizer = torch.optim.AdamW(trained(model), lr=1e-3)
        for _ in range(3):
            model(input_ids=batch(1, 4), labels=batch(1, 4))
        backward(model)
        loss = model(input_ids=batch(2), labels=batch(2)).loss
        optimizer.zero_grad()  # the usual place: after the forward pass, before the backward pass
        loss.backward()
        optimizer.step()
        assert session.engine.progress.tokens == 22
        optimizer.zero_grad()
        backward(model)
        model(input_ids=batch(1, 4), labels=batch(1, 4))
        backward(model)
        optimizer.step()
        assert session.engine.progress.tokens == 3 * 22, "accumulated"


def test_gradients_without_backward_count(tmp_path):
    """torch.autograd.grad, and values that the loop puts into .grad itself."""
    settings = config()
    model = pooled_model(settings)
    with session_of_one(tmp_path / "keys", model, settings) as session:
        optimizer = torch.optim.AdamW(trained(model), lr=1e-3)
        loss = model(input_ids=IDS, labels=IDS).loss
        for parameter, gradient in zip(trained(model), torch.autograd.grad(loss, trained(model)), strict=True):
            parameter.grad = gradient
        optimizer.step()
        assert session.engine.progress.tokens == 22


class NoTensors(Features):
    """Its batch is no tensor."""

    def forward(self, rows: int):
        return super().forward(torch.ones(rows, 32))


@pytest.mark.parametrize("mode", ["local", "gradient"])
def test_a_step_with_a_gradient_and_no_weight_is_an_error_at_that_step(tmp_path, mode):
    settings = config(mode=mode, min_steps=1)
    model = pooled_model(settings, NoTensors)
    with session_of_one(tmp_path / "keys", model, settings) as session:
        optimizer = torch.optim.SGD(trained(model), lr=0.1)
        model(4).square().mean().backward()
        with pytest.raises(ConfigError, match=r"no tensor among their arguments; say it with handle\.count"):
            optimizer.step()
        session._hooks.count(4)
        optimizer.step()
        assert session.engine.progress.tokens == 4


@pytest.mark.usefixtures("hooks_of_two_threads")
def test_the_loop_says_what_the_pool_cannot_count(tmp_path):
    """Of one pass among several, and of a step whose passes go round the model."""
    pair = Pair(tmp_path / "keys", config())

    def body(model, handle) -> None:
        optimizer = torch.optim.AdamW(trained(model), lr=1e-3)
        backward(model)
        loss = model(input_ids=IDS, labels=IDS).loss
        handle.count(5)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.get_base_model()(input_ids=IDS, labels=IDS).loss.backward()
        with pytest.raises(ConfigError, match="came from no forward pass of the model"):
            optimizer.step()
        handle.count(7)
        optimizer.step()
        assert pair.engine(handle.replica).progress.tokens == 22 + 5 + 7

    assert pair.run(body, body) == [None, None]
    assert digest(pair.models[0]) == digest(pair.models[1])


@pytest.mark.parametrize("wrong", [-1, 2.5, "many", True, None])
def test_a_count_is_a_whole_number(wrong):
    from tsugi_kpool import plesio_init

    settings = config()
    with plesio_init(pooled_model(settings), settings) as handle:
        handle.count(torch.tensor(3))
        with pytest.raises(ConfigError, match="tokens must be a whole number of at least 0"):
            handle.count(wrong)


def test_a_label_that_is_shifted_already_counts_as_it_is():
    ids = batch(0)
    shifted = torch.nn.functional.pad(ids, (0, 1), value=-100)[..., 1:]
    shifted[0, :4] = -100
    weigher = Weigher(pooled_model(config()))
    assert int(weigher.weigh((), {"input_ids": ids, "labels": ids, "shift_labels": shifted}).tokens) == 22 - 4
