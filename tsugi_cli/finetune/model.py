"""The base model, its configuration and its tokenizer, loaded from the files that `kept` provides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from tsugi_cli.config.spec import Model
from tsugi_cli.config.templates import jinja_of
from tsugi_kpool.errors import MachineError

from .kept import check_cache, fetching, gguf_file, is_ready, local_folder, model_path, prepare, quieten

__all__ = [
    "check_cache", "fetching", "gguf_file", "is_ready", "load", "load_config", "load_empty", "load_tokenizer",
    "local_folder", "model_path", "on_cpu", "prepare", "quieten", "sizes",
]  # fmt: skip


def load(model: Model, device: Any = None) -> tuple[Any, Any]:
    """The base model (evaluation mode) and its tokenizer.

    Args:
        model: Which, and in what form.
        device: What it will train on, which decides about number formats; None: the CPU. A quantised base is there
            already, any other is still in the machine's memory.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from .liger import fuse
    from .quantise import keep_as_loaded

    tokenizer = load_tokenizer(model)
    with _loading(model):
        arguments = _arguments(model, device or torch.device("cpu"))
        loaded = AutoModelForCausalLM.from_pretrained(prepare(model), **arguments)
    if model.quantize == "4bit":
        keep_as_loaded(loaded)
    if model.liger:
        fuse(loaded)
    return loaded.eval(), tokenizer


def _arguments(model: Model, device: Any) -> dict[str, Any]:
    """What from_pretrained is told beside the path."""
    from .precision import dtype_of
    from .quantise import quantisation

    dtype = dtype_of(model.dtype, device)
    found: dict[str, Any] = {"dtype": dtype, **_source(model)}
    if model.quantize != "none":
        found |= {"quantization_config": quantisation(model.quantize, dtype), "device_map": {"": device}}
    if model.attention != "auto":
        found["attn_implementation"] = model.attention
    return found


def _source(model: Model) -> dict[str, Any]:
    """What of a model on the hub is meant, and whether its code may run."""
    revision = {"revision": model.revision} if model.revision is not None else {}
    return {**revision, "trust_remote_code": model.trust_remote_code}


def load_empty(model: Model, device: Any) -> tuple[Any, Any]:
    """The base model without values (on "meta"), as `load` makes it for this device, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from .liger import fuse

    tokenizer, config = load_tokenizer(model), load_config(model)
    with _loading(model), torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, **_arguments(model, device))
    with suppress(OSError):  # a model without one has what its configuration says
        empty.generation_config = GenerationConfig.from_pretrained(prepare(model), **_source(model))
    if model.liger:
        fuse(empty)
    return empty.eval(), tokenizer


def on_cpu(model: Model) -> Model:
    """The same without what needs a GPU: a run's model is looked at, exported and merged on any machine."""
    attention = "auto" if model.attention == "flash_attention_2" else model.attention
    return replace(model, quantize="none", liger=False, attention=attention)


def load_tokenizer(model: Model) -> Any:
    """The model's tokenizer, with the template that its user wants, and a token to pad with."""
    from transformers import AutoTokenizer

    with _loading(model):
        tokenizer = AutoTokenizer.from_pretrained(prepare(model), **_source(model))
    if model.chat_template is not None:
        tokenizer.chat_template = jinja_of(model.chat_template)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def sizes(model: Model) -> tuple[int, int | None]:
    """(tokens that the model has an embedding for, its longest input where there is a limit), from its config."""
    config = load_config(model).get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    return int(config.vocab_size), positions if isinstance(positions, int) and positions > 0 else None


def load_config(model: Model) -> Any:
    """What transformers knows of the model without its weights."""
    from transformers import AutoConfig

    with _loading(model):
        return AutoConfig.from_pretrained(prepare(model), **_source(model))


@contextmanager
def _loading(model: Model) -> Iterator[None]:
    """What cannot be loaded is this machine's to mend."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: what is no hub id, and files that are no model's
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MachineError(f"cannot load the model {model_path(model)}: {reason}") from error
