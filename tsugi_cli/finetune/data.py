"""Conversations: loaded, checked and split. No torch here, so that the launcher can refuse bad data at once."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import random
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tsugi_cli.config.spec import Data, RunSpec
from tsugi_cli.data.packing import by_length
from tsugi_cli.data.sources import Part
from tsugi_kpool.errors import ConfigError, DataError
from tsugi_kpool.foreign import open_plain

Conversation = list[dict[str, str]]
"""Messages, each with "role" and "content"; the last one is the assistant's."""

T = TypeVar("T")
ROLES = ("system", "user", "assistant")
SPLITS: tuple[Part, ...] = ("train", "eval", "test")
LONGEST_SHOWN = 200
"""Of a text that comes from data or a user's function."""
_HALF = re.compile("[\ud800-\udfff]")
MAX_SHOWN = 5
"""Bad lines named one by one; the rest are counted."""


@dataclass(frozen=True)
class Splits:
    """Three lists of conversations that do not overlap."""

    train: list[Conversation]
    eval: list[Conversation]
    test: list[Conversation]

    def fingerprint(self) -> str:
        """Hash of everything: replicas with different data must not train together."""
        text = json.dumps([self.train, self.eval, self.test], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def load_splits(data: Data) -> Splits:
    """Make or read the conversations.

    Raises:
        ConfigError: `data.builder` cannot be imported or called.
        DataError: nothing usable; says which file and lines, what was found and what is expected.
    """
    splits = _split_file(data) if data.builder is None else _built(data, data.builder)
    if not splits.train:
        raise DataError("there is nothing to train on: the train split is empty")
    return splits


def load_built(data: Data) -> Splits:
    """What `data.builder` makes."""
    return _built(data, data.builder or "")


def total_samples(spec: RunSpec, n_train: int) -> int:
    """Samples that the fleet trains on in this run."""
    if spec.train.max_micro_steps is not None:
        return spec.train.max_micro_steps * spec.train.micro_batch
    return max(1, round(spec.train.epochs * n_train))


class DataOrder:
    """Position in the run -> index of the training row: a new permutation for every epoch.

    Args:
        seed: Of all permutations.
        n_train: Rows.
        lengths: Tokens of each; rows of similar lengths stand side by side then. None: they need not.
    """

    def __init__(self, seed: int, n_train: int, lengths: Sequence[int] | None = None) -> None:
        self._seed, self._n, self._lengths = seed, n_train, lengths
        self._epochs: dict[int, list[int]] = {}

    def __call__(self, position: int) -> int:
        epoch, offset = divmod(position, self._n)
        if epoch not in self._epochs:
            permutation = list(range(self._n))
            chance = random.Random(f"{self._seed}:{epoch}")
            chance.shuffle(permutation)
            if self._lengths is not None:
                permutation = by_length(permutation, self._lengths, chance)
            self._epochs = {epoch: permutation}
        return self._epochs[epoch][offset]


def import_function(target: str, key: str) -> Callable[..., Any]:
    """Turn "package.module:function" into the function.

    Raises:
        ConfigError: there is no such thing.
    """
    module, _, name = target.partition(":")
    try:
        found = _of_user(lambda: getattr(importlib.import_module(module), name))
    except _UserError as error:
        problem = f'{key}={target}: cannot be imported ({error}); write "package.module:function"'
        raise ConfigError([problem]) from error
    if not callable(found):
        raise ConfigError([f"{key}={target}: is not a function"])
    return found  # type: ignore[no-any-return]


class _UserError(Exception):
    """What a function of the user's has raised, in one line with its place."""


def _of_user(act: Callable[[], T]) -> T:
    """Run code that a user has named: whatever it raises is the user's to mend, and no mistake of ours.

    Raises:
        _UserError: it has raised something, or wanted to end the process.
    """
    try:
        return act()
    except (Exception, SystemExit) as error:  # a user's own code
        frames = traceback.extract_tb(error.__traceback__)
        at = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames and frames[-1].filename != __file__ else ""
        said = " ".join(str(error).split())[:LONGEST_SHOWN]
        raise _UserError(f"{type(error).__name__}{': ' if said else ''}{said}{at}") from error


def _built(data: Data, target: str) -> Splits:
    """What the user's builder makes, every conversation checked as those of a file are."""
    build, wanted = import_function(target, "data.builder"), (data.seed, data.n_train, data.n_eval or 0, data.n_test)
    _check_takes(build, wanted, target)
    try:
        built = _of_user(lambda: _as_lists(build(*wanted)))
    except _UserError as error:
        raise DataError(f"data.builder={target} raised {error}") from error
    if built is None:
        raise DataError(f'data.builder={target}: expected a dict with lists "train", "eval" and "test"')
    problems = _Problems()
    splits = [
        [problems.kept(f"data.builder={target}: {name}[{at}]", _checked, each) for at, each in enumerate(split)]
        for name, split in built.items()
    ]
    problems.end()
    return Splits(*[[each for each in split if each is not None] for split in splits])


def _as_lists(built: Any) -> dict[str, list[Any]] | None:
    """The three splits, or None when this is something else. It may be an object of the user's, and raise."""
    if not isinstance(built, Mapping) or any(not isinstance(built.get(name), list | tuple) for name in SPLITS):
        return None
    return {name: list(built[name]) for name in SPLITS}


def _check_takes(build: Callable[..., Any], wanted: tuple[int, ...], target: str) -> None:
    try:
        signature = inspect.signature(build)
        signature.bind(*wanted)
    except TypeError as error:
        problem = f"data.builder={target} takes {signature}, but is called with (seed, n_train, n_eval, n_test)"
        raise ConfigError([problem]) from error
    except ValueError:  # a function of C that does not say what it takes
        return


def _split_file(data: Data) -> Splits:
    """Shuffle a file's conversations once by data.seed, then cut eval and test off."""
    conversations = read_jsonl(Path(str(data.path or "")).expanduser())
    random.Random(data.seed).shuffle(conversations)
    n_eval = min(64, len(conversations) // 10) if data.n_eval is None else data.n_eval
    held = n_eval + data.n_test
    if held >= len(conversations):
        raise DataError(
            f"{data.path} has {len(conversations)} samples, but data.n_eval={n_eval} and "
            f"data.n_test={data.n_test} leave none to train on"
        )
    rest = conversations[held:]
    return Splits(
        train=rest[: data.n_train] if data.n_train else rest,
        eval=conversations[:n_eval],
        test=conversations[n_eval:held],
    )


def read_jsonl(path: Path) -> list[Conversation]:
    """Read a .jsonl file; blank lines are skipped, anything else that is wrong is named by its line."""
    conversations: list[Conversation] = []
    problems = _Problems()
    try:
        with open_plain(path.resolve()) as file:  # the user named it, so links on the way are meant
            for number, line in enumerate(file, start=1):
                if line.strip() and (read := problems.kept(f"{path}:{number}", conversation_of, line)) is not None:
                    conversations.append(read)
    except (OSError, RuntimeError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    problems.end()
    if not conversations:
        raise DataError(f"{path} is empty")
    return conversations


class _Problems:
    """Counts what is wrong with samples; the first ones are told."""

    def __init__(self) -> None:
        self._told: list[str] = []
        self._more = 0

    def kept(self, where: str, read: Callable[[Any], T], given: Any) -> T | None:
        """What `read` makes of it, or None when it raises a ValueError."""
        try:
            return read(given)
        except ValueError as error:
            if len(self._told) < MAX_SHOWN:
                self._told.append(f"{where}: {error}")
            else:
                self._more += 1
            return None

    def end(self) -> None:
        """All have been looked at.

        Raises:
            DataError: something was wrong.
        """
        if self._told:
            more = [f"... and {self._more} more"] if self._more else []
            raise DataError("\n".join([*self._told, *more]))


def conversation_of(line: bytes) -> Conversation:
    """One line as messages; ValueError says what is wrong with it."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("lists or objects inside each other, too deep to be read") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, found {type(record).__name__}")
    if "messages" in record:
        return _checked(record["messages"])
    if "prompt" in record and "completion" in record:
        pair = [("user", record["prompt"]), ("assistant", record["completion"])]
        return _checked([{"role": role, "content": content} for role, content in pair])
    found = _shown(", ".join(record)) if record else "nothing"
    raise ValueError(f'expected "messages", or "prompt" and "completion"; found {found}')


def _checked(messages: Any) -> Conversation:
    if not isinstance(messages, list) or not messages:
        raise ValueError('"messages" must be a list with at least one message')
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError('every message needs "role" and a text as "content"')
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            found = repr(role)[:LONGEST_SHOWN] if isinstance(role, str) else f"of type {type(role).__name__}"
            raise ValueError(f"role {found} is not one of {', '.join(ROLES)}")
        if half := _HALF.search(message["content"]):
            code = f"\\u{ord(half[0]):04x}"
            raise ValueError(f'{code} in "content" is half of a character (a lone surrogate), which no text can have')
    if messages[-1]["role"] != "assistant":
        raise ValueError("the last message must be the assistant's: nothing else is trained on")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:LONGEST_SHOWN])
