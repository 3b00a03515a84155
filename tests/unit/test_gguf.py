"""A merged model as a GGUF file: what is read back says the same, and what would lose something is refused."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tsugi_cli.finetune import gguf
from tsugi_cli.finetune.merge import difference, logits
from tsugi_kpool.errors import ConfigError, ExportError

pytest.importorskip("gguf")

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|pad|>", "<|begin|>", "<|end|>"]


def tokenizer_of(split: str):
    """Small, byte-level, with merges."""
    found = Tokenizer(models.BPE())
    parts = [pre_tokenizers.Split(Regex(split), "isolated")] if split else []
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split))
    found.pre_tokenizer = pre_tokenizers.Sequence(parts)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    found.train_from_iterator(["the hall and the hallway, then there", "1 22 333 they're"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=found, pad_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2]
    )


def source_of(tmp_path, kind: str, split: str = QWEN, dtype=torch.float32, **changes) -> gguf.Source:
    tokenizer = tokenizer_of(split)
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    }  # fmt: skip
    if kind == "qwen3":
        sizes["head_dim"] = 128  # transformers takes no other for granted when it reads one
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **changes})).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn_like(value).mul(0.2).to(dtype))
            value.data = value.data.to(dtype)  # not .to(): rotary frequencies are no parameters and stay exact
    tokenizer.save_pretrained(tmp_path)
    return gguf.Source(model, tokenizer, tmp_path, None)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("kind", "dtype"), [("llama", torch.float32), ("qwen2", torch.float16), ("qwen3", torch.bfloat16)]
)
def test_what_is_read_back_says_the_same(tmp_path, kind, dtype, tied):
    source = source_of(tmp_path, kind, dtype=dtype, tie_word_embeddings=tied)
    gguf.write(source, tmp_path / "model.gguf")
    found = gguf.read_back(tmp_path / "model.gguf", source.tokenizer, torch.float32)
    wanted = source.model.float()
    assert difference(logits(found.eval()), logits(wanted)) <= 1e-5


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("kind", "dtype"), [("llama", torch.float32), ("qwen2", torch.float16), ("qwen3", torch.bfloat16)]
)
def test_llama_cpp_splits_and_answers_as_transformers(tmp_path, kind, dtype):
    """The program for which the file is: not installed by us, `pip install llama-cpp-python` brings it."""
    llama_cpp = pytest.importorskip("llama_cpp")
    source = source_of(tmp_path, kind, dtype=dtype)
    path = tmp_path / "model.gguf"
    gguf.write(source, path)
    found = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    try:
        ids = source.tokenizer.encode("the hallway, 1 22 they're", add_special_tokens=False)
        assert found.tokenize(b"the hallway, 1 22 they're", add_bos=False) == ids
        found.eval(ids)
        theirs = torch.tensor(found.scores[: len(ids)])
    finally:
        found.close()
    with torch.inference_mode():
        ours = source.model.float()(torch.tensor([ids])).logits[0]
    # Its keys and values are float16.
    assert (theirs - ours).abs().max() <= 1e-2 * ours.abs().max()
    assert torch.equal(theirs.argmax(-1), ours.argmax(-1))


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("gpt_neox", {}, "a model of the type gpt_neox"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            r"scaled \(linear\)",
        ),
        ("llama", {"attention_bias": True, "split": r"\w+|\W+"}, "splits texts as none that llama.cpp knows"),
    ],
)
def test_what_would_lose_something_is_refused_with_the_way_out(tmp_path, kind, changes, reason):
    source = source_of(tmp_path, kind, **changes)
    with pytest.raises(ConfigError, match=f"--gguf: .*{reason}.*convert_hf_to_gguf.py FOLDER"):
        gguf.write(source, tmp_path / "model.gguf")


def test_a_file_whose_tokenizer_splits_in_another_way_is_not_written(tmp_path):
    source = source_of(tmp_path, "qwen2")
    gguf.write(source, tmp_path / "model.gguf")
    with pytest.raises(ExportError, match="splits a text in another way"):
        gguf.read_back(tmp_path / "model.gguf", tokenizer_of(""), torch.float32)
