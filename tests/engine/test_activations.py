"""What a dry run says of activations is what torch keeps for the backward pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from tsugi_cli.config.compose import compose
from tsugi_cli.finetune.activations import FAMILIES, layer_bytes, shape_of
from tsugi_cli.finetune.lora import add_pool
from tsugi_cli.finetune.objectives import supervised
from tsugi_cli.finetune.tokens import IGNORED, Sample, collate

CLASSES = {
    "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "smollm3": "SmolLM3",
    "olmo2": "Olmo2", "granite": "Granite",
}  # fmt: skip
SIZES = {
    "vocab_size": 100, "hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def kept(kind: str, layers: int, dtype: torch.dtype) -> tuple[dict, float]:
    """(config, bytes that torch keeps of a token)."""
    config = getattr(transformers, f"{CLASSES[kind]}Config")(**SIZES, num_hidden_layers=layers)
    base = getattr(transformers, f"{CLASSES[kind]}ForCausalLM")(config).to(dtype).eval()
    lora = replace(compose(["model=tiny"]).lora, target_modules="all-linear")
    model = add_pool(base, lora).train()
    own = {each.untyped_storage().data_ptr() for each in model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(5, 90, (256,)).tolist()
    batch = collate([Sample(ids, [IGNORED] * 255 + ids[-1:])] * 2, 0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = supervised(model, batch)
    del out
    return config.to_dict(), sum(found.values()) / 512


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_a_layer_keeps_what_is_counted(kind, dtype):
    """Two sizes of one model, so that what is outside of layers drops out."""
    (config, few), (_, more) = kept(kind, 1, dtype), kept(kind, 3, dtype)
    counted = layer_bytes(shape_of(config), compose(["model=tiny"]).lora.rank, dtype.itemsize)
    assert (more - few) / 2 == pytest.approx(counted, rel=0.12)


def test_what_has_not_been_counted_has_no_shape():
    assert shape_of({"model_type": "mixtral", **SIZES, "num_hidden_layers": 2}) is None
    assert shape_of({"model_type": "llama"}) is None
