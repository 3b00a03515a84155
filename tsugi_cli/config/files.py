"""What a run needs on this machine: files and folders that a user names, keys, packages; and what was meant."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tsugi_kpool.errors import SidebandError
from tsugi_kpool.foreign import kind as kind_of
from tsugi_kpool.system import has_gpu

from .training import lacking

GGUF = b"GGUF"
"""How such a file begins."""
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
"""Files that rows are read from."""
PACKED = (".gz", ".zst")
"""And those may be packed."""
GLOB = re.compile(r"[*?\[]")
HUB_NAME = re.compile(r"([\w][\w.-]*/[\w][\w.-]*)(?:\[([\w.-]+)\])?")
"""With the split that is meant, where it is not that of data.split: owner/name[test]."""


TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
"""Each is the name of the package that it needs, and of our extra for it."""


def missing_trackers(asked: Sequence[str]) -> list[str]:
    """A text for each tracker whose package is not installed."""
    lacking = [name for name in asked if find_spec(name) is None]
    return [f"track={name} needs one more package: pip install 'tsugi[{name}]'" for name in lacking]


def missing_files(leaves: Mapping[str, Any]) -> list[str]:
    """A text for every path that should exist on this machine and does not."""
    found = []
    for key in ("data.path", "data.eval", "data.test", "data.mix"):
        found += [f"{key}: {problem}" for text in named(leaves.get(key), key) if (problem := data_problem(text))]
    path, source = leaves.get("model.path") or "", leaves.get("model.source")
    if source == "hf" and path and (text := _no_model(path)) is not None:
        found.append(f"model.path: {text}")
    if source == "gguf" and path and (text := _no_gguf(path)) is not None:
        found.append(f"model.path: {text}")
    return found + missing_packages(leaves) + lacking(leaves.get("train.optimizer", ""))


def _no_model(path: str) -> str | None:
    """Why no model can be loaded from this folder; None for one that is whole, and for a name on the hub."""
    if not is_dir(path):
        return no_such(path, "directory") if path.startswith(("/", "./", "../", "~")) else None
    if is_file(f"{path}/config.json"):
        return None
    if is_file(f"{path}/adapter_config.json"):
        return f"{path} is an adapter, not a model; to train it further: model=BASE lora.from={path}"
    packed = sorted(each.name for each in Path(path).expanduser().glob("*.gguf"))
    hint = f"; a GGUF file is named itself: model={path.rstrip('/')}/{packed[0]}" if packed else ""
    return f"{path} holds no model: there is no config.json in it{hint}"


def _no_gguf(path: str) -> str | None:
    """Why this is no GGUF file; None for one that begins as they do."""
    if not is_file(path):
        return no_such(path, "file")
    try:
        with Path(path).expanduser().open("rb") as file:
            first = file.read(len(GGUF))
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return None if first == GGUF else f"{path} is no GGUF file: it begins with {first!r}"


def missing_packages(leaves: Mapping[str, Any]) -> list[str]:
    """A text for everything that `model.*` needs on a machine with replicas and that is not there."""
    if leaves.get("topology.here") == 0:
        return []
    quantize, found = leaves.get("model.quantize", "none"), []
    if quantize != "none":
        if quantize == "8bit" and (leaves.get("topology.device") == "cpu" or not has_gpu()):
            found.append("model.quantize=8bit needs a GPU, and this machine has none; 4bit or none train without")
        elif find_spec("bitsandbytes") is None:
            found.append(f"model.quantize={quantize} needs one more package: pip install 'tsugi[quant]'")
    if leaves.get("model.liger") is True and find_spec("liger_kernel") is None:
        found.append("model.liger needs one more package: pip install 'tsugi[liger]'")
    if leaves.get("model.attention") == "flash_attention_2" and find_spec("flash_attn") is None:
        found.append("model.attention=flash_attention_2 needs one more package: pip install flash-attn")
    if leaves.get("model.source") == "gguf" and find_spec("gguf") is None:
        found.append("a GGUF file needs one more package: pip install 'tsugi[demo]'")
    return found


def named(value: Any, key: str = "") -> list[str]:
    """The files, folders, globs and hub names of a setting; those of `data.mix` without their weights."""
    texts = [value] if isinstance(value, str) else list(value or ())
    return [text.rpartition(":")[0] or text for text in texts] if key == "data.mix" else texts


def data_problem(text: str) -> str | None:
    """Why nothing can be read there; None for what exists on this machine, and for what may be a hub name."""
    if is_file(text) or is_hub_name(text):
        return None
    if is_dir(text):
        names = [entry.name for entry in Path(text).expanduser().iterdir()]
        if any(is_data(name) or is_dir(str(Path(text) / name)) for name in names):
            return None
        return f"{text} holds no data file; read are {', '.join(SUFFIXES)}, also with .gz or .zst behind"
    if GLOB.search(text):
        return None if globbed(text) else f"no file matches {text}"
    return no_such(text, "file")


def globbed(text: str) -> list[Path]:
    """The files that a pattern matches, sorted; none for a text that cannot be a pattern at all."""
    try:
        path = Path(text).expanduser()
        first = next((at for at, part in enumerate(path.parts) if GLOB.search(part)), len(path.parts))
        folder, pattern = Path(*path.parts[:first]), str(Path(*path.parts[first:]))
        return sorted(each for each in folder.glob(pattern) if each.is_file())
    # ~somebody without a home, a NUL character, ** within a name, a folder that nobody may look into.
    except (OSError, ValueError, RuntimeError, NotImplementedError):
        return []


def is_data(name: str) -> bool:
    """Whether a file of this name is one that rows are read from."""
    name = name.lower()
    for end in PACKED:
        name = name.removesuffix(end)
    return name.endswith(SUFFIXES)


def is_hub_name(text: str) -> bool:
    """Whether this may be a data set's name on the hub, such as HuggingFaceH4/ultrachat_200k[train_sft]."""
    found = HUB_NAME.fullmatch(text)
    return found is not None and not is_data(found[1]) and not is_dir(text) and not is_dir(text.split("/")[0])


def missing_for_a_hub(leaves: Mapping[str, Any]) -> list[str]:
    """A text for everything that the hub needs on its machine, which a replica elsewhere does not."""
    found = []
    if leaves.get("sideband.metrics_port") is not None and find_spec("prometheus_client") is None:
        found.append("sideband.metrics_port needs one more package: pip install 'tsugi[metrics]'")
    found += missing_trackers(leaves.get("track") or [])
    path = leaves.get("sideband.keys")
    if path is not None:
        found += _keys(path)
    return found


def _keys(path: str) -> list[str]:
    """A key file without keys would be a hub that lets everybody in: only `sideband.insecure` says so."""
    from tsugi_kpool.sideband.keys import load  # ZeroMQ: `tsugi --help` does without

    if not is_file(path):
        return [f"sideband.keys: {no_such(path, 'file')}"]
    try:
        keys = load(Path(path).expanduser().resolve())
    except SidebandError as error:
        return [f"sideband.keys: {error}"]
    return [] if keys.curve else [f"sideband.keys: {path} holds no keys; sideband.insecure=true goes without"]


def is_file(text: str) -> bool:
    """Whether this is an existing file; a text that cannot be a path at all is none."""
    return _probe(text, Path.is_file)


def is_dir(text: str) -> bool:
    """Whether this is an existing directory; a text that cannot be a path at all is none."""
    return _probe(text, Path.is_dir)


def near_file(text: str) -> str:
    """ "; did you mean X?" for the file or directory in the same folder whose name is nearest, or nothing."""
    try:
        path = Path(text).expanduser()
        names = [entry.name for entry in path.parent.iterdir()]
    except (OSError, ValueError, RuntimeError):
        return ""
    close = [] if path.name in names else get_close_matches(path.name, names, n=1)
    return f"; did you mean {Path(text).parent / close[0]}?" if close else ""


def _probe(text: str, test: Callable[[Path], bool]) -> bool:
    try:
        return test(Path(text).expanduser())
    # A name that is too long, a NUL character, ~somebody without a home.
    except (OSError, ValueError, RuntimeError):
        return False


def other_kind(text: str) -> str | None:
    """What stands there that is neither a file nor a directory; None when nothing does."""
    try:
        path = Path(text).expanduser()
        if path.is_symlink() and not path.exists():
            return "is a link that leads nowhere"
        found = path.stat().st_mode
        if stat.S_ISREG(found):
            return None
    except PermissionError:
        return "cannot be looked at: permission denied"
    except (OSError, ValueError, RuntimeError):
        return None
    # Whatever can be read once only is none: every process of a run reads its files.
    return f"is {kind_of(found)}, not a file"


def no_such(text: str, kind: str) -> str:
    """The text for a path that is not there, or is something else."""
    folder = str(Path(text).parent)
    if is_dir(text):
        return f"{text} is a directory, not a {kind}"
    if is_file(text):
        return f"{text} is a file, not a {kind}"
    if (other := other_kind(text)) is not None:
        return f"{text} {other}"
    if not is_dir(folder):
        return f"no such {kind}: {text} (there is no folder {folder}{near_file(folder)})"
    return f"no such {kind}: {text}{near_file(text)}"
