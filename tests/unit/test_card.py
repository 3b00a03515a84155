"""What an adapter's folder says and holds: card, tokenizer, template."""

from __future__ import annotations

import yaml
from peft import PeftModel
from transformers import AutoTokenizer

from tsugi_cli.config.compose import compose
from tsugi_cli.finetune.card import card, with_results
from tsugi_cli.finetune.export import beside, export
from tsugi_cli.finetune.lora import add_pool
from tsugi_cli.finetune.model import load

SUMMARY = {"evaluation": {"base": {"loss": 2.5}, "trained": {"loss": 1.25}}, "tokens": 900, "version": 7}


def test_the_card_says_what_was_trained_on_what_and_how_to_load_it():
    text = card(compose(["model=org/some", "data.seed=1", "kpool.n=4", "kpool.k=2"]), "org/some", "abc123", "d" * 64)
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "org/some"
    for fact in ("org/some", "abc123", "d" * 64, "smollm2_tools", "2 replicas", "N=4", "K=2", "PeftModel"):
        assert fact in text


def test_the_card_says_what_the_lora_was_and_which_base_it_is_for():
    words = ["model=org/some", "model.revision=v2", "model.trust_remote_code=true", "lora.rank=24", "lora.init=pissa"]
    text = card(compose(words), "org/some", None, "d" * 64)
    assert "rank 24, alpha 32 on all-linear, init=pissa; here as a plain LoRA of twice the rank" in text
    assert "N=8 adapters of rank 3" in text
    assert "from_pretrained('org/some', revision='v2', trust_remote_code=True)" in text


def test_results_are_added_once_however_often_they_are_told():
    text = card(compose(["model=tiny"]), "/cache/tiny", None, "d" * 64)
    once = with_results(text, SUMMARY)
    assert "| loss | 2.5000 | 1.2500 |" in once
    assert with_results(once, SUMMARY) == once
    assert "Nothing was evaluated" in with_results(once, {})


def test_an_adapter_folder_is_loaded_with_its_tokenizer_and_template(tmp_path):
    spec = compose(["model=tiny"])
    base, tokenizer = load(spec.model)
    model = add_pool(base, spec.lora)
    export(model, tmp_path / "adapter", beside(spec, model, tokenizer, "d" * 64))
    loaded = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    turns = [{"role": "user", "content": "hello"}]
    assert loaded.apply_chat_template(turns, tokenize=False) == tokenizer.apply_chat_template(turns, tokenize=False)
    assert "d" * 64 in (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    PeftModel.from_pretrained(load(spec.model)[0], tmp_path / "adapter")
