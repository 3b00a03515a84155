"""Masks: loss on the assistant's tokens only, through the model's own chat template."""

from __future__ import annotations

import pytest
import torch

from tests.support import tiny_model
from tsugi_cli.config.spec import Model
from tsugi_cli.finetune.evaluate import supervised_loss
from tsugi_cli.finetune.model import load
from tsugi_cli.finetune.tokens import IGNORED, Sample, collate, prompt_ids, tokenise
from tsugi_kpool.errors import DataError

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2 it is"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return load(Model(source="tiny", path=None, package=None, file=None, dtype="float32"))[1]


def supervised(sample: Sample, tokenizer) -> str:
    return tokenizer.decode([label for label in sample.labels if label != IGNORED])


def test_only_the_assistants_words_and_its_stop_are_trained_on(tokenizer):
    (sample,) = tokenise([TALK], tokenizer, 500)
    assert supervised(sample, tokenizer) == "1<|end|>2 it is<|end|>"
    assert all(label in (IGNORED, token) for token, label in zip(sample.ids, sample.labels, strict=True))


def test_generation_starts_exactly_where_training_did(tokenizer):
    (sample,) = tokenise([TALK], tokenizer, 500)
    prompt = prompt_ids(TALK, tokenizer)
    assert sample.ids[: len(prompt)] == prompt
    assert tokenizer.decode(sample.ids[len(prompt) :]) == "2 it is<|end|>"


def test_long_prompts_are_cut_at_the_front_and_answers_never(tokenizer):
    (sample,) = tokenise([TALK], tokenizer, 20)
    assert len(sample.ids) == 20
    assert supervised(sample, tokenizer).endswith("2 it is<|end|>")


def test_a_sample_without_anything_to_learn_is_refused(tokenizer):
    with pytest.raises(DataError, match="no supervised token"):
        tokenise([TALK], tokenizer, 1)


def test_a_template_without_turns_to_tell_apart_is_refused(tokenizer):
    class Rewriting:
        eos_token_id = 2
        chat_template = "x"

        def apply_chat_template(self, messages, tokenize, add_generation_prompt):
            return f"{len(messages)} messages: ..."

    with pytest.raises(DataError, match="rewrites earlier turns"):
        tokenise([TALK], Rewriting(), 100)


def test_loss_is_the_mean_over_supervised_tokens_wherever_they_stand():
    """Logits are taken at a few columns only; the result equals the plain computation."""
    model = tiny_model()
    ids = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))
    samples = [Sample(ids[0].tolist(), [IGNORED] * 5 + ids[0, 5:].tolist())]
    samples.append(Sample(ids[1, :9].tolist(), [IGNORED] * 2 + ids[1, 2:4].tolist() + [IGNORED] * 5))
    batch = collate(samples, pad_id=0)
    plain = model(input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels).loss
    assert batch.tokens == 9
    torch.testing.assert_close(supervised_loss(model, batch), plain, atol=1e-5, rtol=0)
