"""`model=FILE.gguf`: a file on this machine is converted once, and loaded like any other model."""

from __future__ import annotations

import pytest
import torch

from tests.support import tiny_model
from tsugi_cli.config.compose import compose
from tsugi_cli.finetune.model import is_ready, load, model_path
from tsugi_kpool.errors import EnvironmentError_

gguf = pytest.importorskip("gguf")

SYMBOLS = [*(chr(33 + number) for number in range(61)), "<s>", "</s>", '!"']
"""Of a byte-level tokenizer, as many as the tiny model has embeddings for."""
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def named(name: str) -> str:
    """What GGUF calls a weight of a Llama."""
    name = name.removesuffix(".weight")
    if not name.startswith("model.layers."):
        return f"{NAMES[name]}.weight"
    _, _, number, rest = name.split(".", 3)
    return f"blk.{number}.{NAMES[rest]}.weight"


def write(path, model) -> None:
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(SYMBOLS)
    writer.add_token_merges(['! "'])
    writer.add_bos_token_id(SYMBOLS.index("<s>"))
    writer.add_eos_token_id(SYMBOLS.index("</s>"))
    for name, values in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp turns pairs, not halves
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = values.view(heads, 2, -1, values.shape[1]).transpose(1, 2).reshape(values.shape)
        writer.add_tensor(named(name), values.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_file_that_ends_too_early_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "some.gguf"
    file.write_bytes(b"GGUF\x03\0\0\0")
    with pytest.raises(EnvironmentError_, match=r"some\.gguf cannot be converted \(error: unpack_from requires"):
        load(compose([f"model={file}"]).model)


def test_a_gguf_file_is_converted_once_and_says_what_the_model_said(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, file = tiny_model(), tmp_path / "some.gguf"
    write(file, model)
    spec = compose([f"model={file}"])
    loaded, _ = load(spec.model)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5, rtol=0)
    assert is_ready(spec.model), "another run converts nothing"
    before = model_path(spec.model)
    file.write_bytes(file.read_bytes() + b"\0" * 32)
    assert model_path(spec.model) != before, "a file that has changed is another model"
    assert not is_ready(spec.model)
