"""Which files of a folder are read: those of one split, where their names say that there are several."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tsugi_cli.config import files
from tsugi_cli.config.spec import Data
from tsugi_kpool.errors import DataError

ABOUT = frozenset(("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"))
"""What `datasets` writes beside rows."""
_SHARD = re.compile(r"([\w.]+)-\d{5}-of-\d{5}\b")
"""How a file of the hub says its split: train_sft-00000-of-00003.parquet."""
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "evaluation"),
    "test": ("test", "testing"),
}
_SPLIT = {word: split for split, words in _SPLITS.items() for word in words}


def of_folder(text: str, split: str | None) -> list[Path]:
    """The data files of a folder and of those in it, sorted; without hidden ones and those that only describe rows.

    Args:
        text: As its user named it.
        split: The one that is asked for.

    Raises:
        DataError: there are several splits, and none is asked for; or another one than those that there are.
    """
    folder = Path(text).expanduser()
    found = {path: split_of(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if _is_data(path, folder)}
    splits = sorted({each for each in found.values() if each})
    if split is not None:
        chosen = [path for path, each in found.items() if each in (split, _SPLIT.get(split, split))]
        if not chosen:
            raise DataError(f"{text} has no files of data.split={split}; by their names there are {_listed(splits)}")
        return chosen
    if len(splits) > 1:
        said = " or ".join(f"data.split={each}" for each in splits)
        raise DataError(f"{text} holds files of several splits: say {said}, or name the files")
    return list(found)


def split_of(path: Path) -> str | None:
    """The split that a file's name says, or its folder's."""
    shard = _SHARD.match(path.name)
    if shard and shard[1] != "data":
        return _SPLIT.get(shard[1], shard[1])
    for part in (path.name.lower(), *(each.name.lower() for each in path.parents)):
        for word in re.split(r"[\W_\d]+", part):
            if word in _SPLIT:
                return _SPLIT[word]
    return None


def check_asked(named: Sequence[str], data: Data) -> None:
    """A setting that nothing heeds would be lost.

    Raises:
        DataError: `data.split`, `subset` or `revision` where nothing has any.
    """
    remote = any(files.is_hub_name(each) for each in named)
    heeded = {"split": remote or any(files.is_dir(each) for each in named), "subset": remote, "revision": remote}
    for key, there in heeded.items():
        if getattr(data, key) is not None and not there:
            what = "a folder or a data set of the hub" if key == "split" else "a data set of the hub"
            raise DataError(f"data.{key}={getattr(data, key)} is for {what}, and none is named")


def _is_data(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.name not in ABOUT and path.is_file() and files.is_data(path.name)


def _listed(splits: Sequence[str]) -> str:
    return ", ".join(splits) or "none"
