"""Conversations: loaded, checked and split. No torch here, so that the launcher can refuse bad data at once."""

from __future__ import annotations

import hashlib
import importlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugi_cli.spec import Data, RunSpec
from tsugi_kpool.errors import ConfigError, DataError

Conversation = list[dict[str, str]]
"""Messages, each with "role" and "content"; the last one is the assistant's."""

ROLES = ("system", "user", "assistant")
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
        DataError: nothing usable; says which file and lines, what was found and what is expected.
    """
    if data.builder is not None:
        built = import_function(data.builder, "data.builder")(data.seed, data.n_train, data.n_eval, data.n_test)
        splits = Splits(built["train"], built["eval"], built["test"])
    else:
        splits = _split_file(data)
    if not splits.train:
        raise DataError("there is nothing to train on: the train split is empty")
    return splits


def total_samples(spec: RunSpec, n_train: int) -> int:
    """Samples that the fleet trains on in this run."""
    if spec.train.max_micro_steps is not None:
        return spec.train.max_micro_steps * spec.train.micro_batch
    return max(1, round(spec.train.epochs * n_train))


class DataOrder:
    """Position in the run -> index of the training sample: a new permutation for every epoch."""

    def __init__(self, seed: int, n_train: int) -> None:
        self._seed, self._n = seed, n_train
        self._epochs: dict[int, list[int]] = {}

    def __call__(self, position: int) -> int:
        epoch, offset = divmod(position, self._n)
        if epoch not in self._epochs:
            permutation = list(range(self._n))
            random.Random(f"{self._seed}:{epoch}").shuffle(permutation)
            self._epochs = {epoch: permutation}
        return self._epochs[epoch][offset]


def import_function(target: str, key: str) -> Callable[..., Any]:
    """Turn "package.module:function" into the function.

    Raises:
        ConfigError: there is no such thing.
    """
    module, _, name = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        problem = f'{key}={target}: cannot be imported ({error}); write "package.module:function"'
        raise ConfigError([problem]) from error
    if not callable(found):
        raise ConfigError([f"{key}={target}: is not a function"])
    return found  # type: ignore[no-any-return]


def _split_file(data: Data) -> Splits:
    """Shuffle a file's conversations once by data.seed, then cut eval and test off."""
    conversations = read_jsonl(Path(data.path or "").expanduser())
    random.Random(data.seed).shuffle(conversations)
    held = data.n_eval + data.n_test
    if held >= len(conversations):
        raise DataError(
            f"{data.path} has {len(conversations)} samples, but data.n_eval={data.n_eval} and "
            f"data.n_test={data.n_test} leave none to train on"
        )
    rest = conversations[held:]
    return Splits(
        train=rest[: data.n_train] if data.n_train else rest,
        eval=conversations[: data.n_eval],
        test=conversations[data.n_eval : held],
    )


def read_jsonl(path: Path) -> list[Conversation]:
    """Read a .jsonl file; blank lines are skipped, anything else that is wrong is named by its line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    conversations: list[Conversation] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            conversations.append(_conversation(line))
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        more = [f"... and {len(problems) - MAX_SHOWN} more"] if len(problems) > MAX_SHOWN else []
        raise DataError("\n".join([*problems[:MAX_SHOWN], *more]))
    if not conversations:
        raise DataError(f"{path} is empty")
    return conversations


def _conversation(line: str) -> Conversation:
    """One line as messages; ValueError says what is wrong with it."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, found {type(record).__name__}")
    if "messages" in record:
        return _checked(record["messages"])
    if "prompt" in record and "completion" in record:
        pair = [("user", record["prompt"]), ("assistant", record["completion"])]
        return _checked([{"role": role, "content": content} for role, content in pair])
    raise ValueError(f'expected "messages", or "prompt" and "completion"; found {", ".join(record) or "nothing"}')


def _checked(messages: Any) -> Conversation:
    if not isinstance(messages, list) or not messages:
        raise ValueError('"messages" must be a list with at least one message')
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError('every message needs "role" and a text as "content"')
        if message.get("role") not in ROLES:
            raise ValueError(f"role {message.get('role')!r} is not one of {', '.join(ROLES)}")
    if messages[-1]["role"] != "assistant":
        raise ValueError("the last message must be the assistant's: nothing else is trained on")
    return [{"role": m["role"], "content": m["content"]} for m in messages]
