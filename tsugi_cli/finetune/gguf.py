"""A merged model as one GGUF file, as llama.cpp, Ollama and LM Studio read it; read back before it counts.

The `gguf` package knows names of tensors and how a file is laid out. What is ours is which models can be written so
that nothing is lost; everything else is refused with llama.cpp's own converter to paste, which knows all of them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugi_cli.config.spec import Model
from tsugi_kpool.errors import ConfigError, ExportError, MachineError

from .model import gguf_file

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""model_type of transformers -> GGUF's name."""
HALVES = frozenset({"llama"})
"""GGUF's architectures whose rows of q and k stand pair by pair, not half by half."""
FROM_GGUF = frozenset({"gguf", "gguf_package"})
"""Sources of models that are such files."""
SPLITS = {
    "llama-bpe": r"\p{N}{1,3}",
    "qwen2": r"|\p{N}| ?",
}
"""What llama.cpp calls a tokenizer's first split -> what only its pattern holds."""
PROBE = "Hello, wörld!\n  x = 1234567 + 89;\tthey're 3.5 times 北京 🙂"


@dataclass(frozen=True)
class Source:
    """What becomes a file.

    Attributes:
        model: Merged, without PEFT.
        tokenizer: With its chat template.
        folder: Where both lie as transformers wrote them.
        original: The GGUF file from which the base model came, which knows its tokenizer best; None: there is none.
    """

    model: Any
    tokenizer: Any
    folder: Path
    original: Path | None


@contextmanager
def original_of(model: Model) -> Iterator[Path | None]:
    """The GGUF file from which a base model came, for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as scratch:
        yield gguf_file(model, Path(scratch)) if model.source in FROM_GGUF else None


def write(source: Source, target: Path) -> None:
    """Write the file.

    Raises:
        ConfigError: a model of this kind would lose something.
        MachineError: the package `gguf` is missing.
    """
    gguf = _library()
    arch = _architecture(source)
    writer = gguf.GGUFWriter(str(target), arch)
    try:
        _sizes(writer, source.model)
        _tokens(gguf, writer, source)
        for name, values, kind in _tensors(gguf, arch, source.model):
            writer.add_tensor(name, values, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read_back(target: Path, tokenizer: Any, dtype: Any) -> Any:
    """The model in the file, by transformers.

    Raises:
        ExportError: its tokenizer makes something else of a text than the one that was written.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = AutoTokenizer.from_pretrained(target.parent, gguf_file=target.name)
    wanted = tokenizer.encode(PROBE, add_special_tokens=False)
    if found.encode(PROBE, add_special_tokens=False) != wanted:
        raise ExportError("the tokenizer in the GGUF file splits a text in another way: not written")
    return AutoModelForCausalLM.from_pretrained(target.parent, gguf_file=target.name, dtype=dtype)


def _library() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MachineError("writing GGUF files needs one more package: pip install 'tsugi[demo]'") from error
    return gguf


def _architecture(source: Source) -> str:
    config = source.model.config
    found = ARCHITECTURES.get(config.model_type)
    scaling = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if found is None:
        raise _refused(f"a model of the type {config.model_type} is not written as GGUF here")
    if scaling != "default":
        raise _refused(f"its rotary positions are scaled ({scaling})")
    if getattr(source.model, "hf_quantizer", None) is not None:
        raise _refused("its base is quantised")
    return found


def _refused(reason: str) -> ConfigError:
    line = "tsugi export --merge --out FOLDER, then python convert_hf_to_gguf.py FOLDER of llama.cpp"
    return ConfigError([f"--gguf: {reason}; {line}"])


def _sizes(writer: Any, model: Any) -> None:
    config = model.config
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_name(Path(str(config.name_or_path)).name or config.model_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float((config.rope_parameters or {}).get("rope_theta", 10_000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _tensors(gguf: Any, arch: str, model: Any) -> Iterator[tuple[str, Any, Any]]:
    """(GGUF's name, values, type) of every parameter; vectors stay float32, as llama.cpp wants them.

    Raises:
        ConfigError: a parameter has no place in a file of this architecture.
    """
    import torch

    kinds = gguf.MODEL_ARCH_NAMES
    names = gguf.get_tensor_name_map(next(k for k, v in kinds.items() if v == arch), model.config.num_hidden_layers)
    types = gguf.GGMLQuantizationType
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise _refused(f"{name} has no place in a {arch} file")
        whole = _paired(name, value.detach().cpu(), model.config) if arch in HALVES else value.detach().cpu()
        if whole.ndim == 1 or whole.dtype == torch.float32:
            yield found, whole.float().numpy(), None
        elif whole.dtype == torch.float16:
            yield found, whole.numpy(), None
        else:
            bits = whole.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
            yield found, bits, types.BF16


def _paired(name: str, value: Any, config: Any) -> Any:
    """Rows of q and k in llama.cpp's order: the two numbers that a rotation mixes stand beside each other."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return value
    halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return halves.swapaxes(1, 2).reshape(value.shape).contiguous()


def _tokens(gguf: Any, writer: Any, source: Source) -> None:
    if source.original is not None:
        for name, field in gguf.GGUFReader(str(source.original)).fields.items():
            if name.startswith("tokenizer.") and name != "tokenizer.chat_template":
                inner = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(name, field.contents(), field.types[0], inner)
    else:
        _vocabulary(gguf, writer, source)
    if source.tokenizer.chat_template:
        writer.add_chat_template(source.tokenizer.chat_template)


def _vocabulary(gguf: Any, writer: Any, source: Source) -> None:
    """Tokens, merges and special tokens of a byte-level BPE.

    Raises:
        ConfigError: it is another kind of tokenizer, or splits texts as none that llama.cpp knows.
    """
    known = json.loads((source.folder / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = json.dumps(known.get("pre_tokenizer"))
    if known["model"].get("type") != "BPE" or not known["model"]["merges"] or "ByteLevel" not in pieces:
        raise _refused("its tokenizer is no byte-level BPE with merges")
    size = source.model.config.vocab_size
    texts, kinds = [f"[PAD{at}]" for at in range(size)], [gguf.TokenType.UNUSED] * size
    for text, at in known["model"]["vocab"].items():
        texts[at], kinds[at] = text, gguf.TokenType.NORMAL
    for added in known.get("added_tokens", ()):
        special = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        texts[added["id"]], kinds[added["id"]] = added["content"], special
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_split(known, pieces))
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    merges = [each if isinstance(each, str) else " ".join(each) for each in known["model"]["merges"]]
    writer.add_token_merges(merges)
    _special_tokens(writer, source.tokenizer)


def _special_tokens(writer: Any, tokenizer: Any) -> None:
    adds = {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "pad": writer.add_pad_token_id}
    for name, add in adds.items():
        at = getattr(tokenizer, f"{name}_token_id")
        if at is not None:
            add(at)
    first = tokenizer.encode("a")[:1]
    writer.add_add_bos_token(first == [tokenizer.bos_token_id])


def _split(known: dict[str, Any], pieces: str) -> str:
    """What llama.cpp calls the way in which texts are split before the merges."""
    if '"Digits"' in pieces:
        return "smollm"
    patterns = [part for part in _parts(known["pre_tokenizer"]) if part.get("type") == "Split"]
    text = "".join(str(part["pattern"]) for part in patterns).replace("\\\\", "\\")
    for name, mark in SPLITS.items():
        if mark in text:
            return name
    if patterns:
        raise _refused("its tokenizer splits texts as none that llama.cpp knows")
    return "gpt-2"


def _parts(node: dict[str, Any]) -> list[dict[str, Any]]:
    return node["pretokenizers"] if node.get("type") == "Sequence" else [node]
