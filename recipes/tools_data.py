"""The tool-calling recipe's data: a request in plain words -> exactly one JSON tool call.

Look at it with ``python -m tsugi_cli.recipes.tools_data --split test --test 5``.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from .tools_catalog import CHOICES, NUMBERS, TOOLS, WORDS, Numbers, Tool, Value

Split = Literal["train", "eval", "test"]
SPLITS: tuple[Split, ...] = ("train", "eval", "test")
Conversation = list[dict[str, str]]
Pair = tuple[str, Value]  # the words that ask for a value, and the value

# The prompt is on every sample and costs tokens each time, so it only has to displace the long default prompt
# that some chat templates put in when a conversation has none.
SYSTEM = "Tools"
_ATTEMPTS = 50
# Below one half: a model trained briefly is more prone to make an argument up than to leave one out.
_PRESENT = 0.4
# People wrap requests; without these in training a small model trips over the first wrapping that it meets.
_WRAPPINGS = ("please {}", "{} please", "can you {}?", "could you {}?", "I want you to {}", "hey, {}")
_WRAPPED = 0.5
# A phrasing that begins with one of these is an instruction, which can be wrapped.
# fmt: off
_VERBS = frozenset((
    "wake", "set", "start", "get", "count", "text", "send", "email", "write", "call", "phone",
    "give", "play", "put", "turn", "make", "change", "switch", "dim", "heat", "open", "close",
    "lock", "unlock", "vacuum", "preheat", "add", "schedule", "remind", "buy", "save", "note",
    "translate", "convert", "transfer", "pay", "split", "divide", "tip", "show", "guide", "book",
    "find", "reserve", "watch", "read", "check", "define", "look", "log", "track", "follow", "move",
    "search",
))
# fmt: on
_OPTIONAL = re.compile(r"\[([^\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")
_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_MONTHS = (  # not calendar.month_name, which follows the locale
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


@dataclass(frozen=True)
class Pool:
    """The values an argument may take, by split, and what they are."""

    kind: Literal["str", "int", "float", "bool", "enum", "time", "date"]
    pairs: dict[Split, tuple[Pair, ...]]


def _spell(number: int) -> str:
    """A number below a hundred in words."""
    if number < len(_UNITS):
        return _UNITS[number]
    tens, unit = divmod(number, 10)
    return f"{_TENS[tens]} {_UNITS[unit]}" if unit else _TENS[tens]


def _divide(ranked: Iterable[tuple[int, Pair]]) -> dict[Split, tuple[Pair, ...]]:
    """Share number-like values out by rank: three fifths to train, a fifth each to eval and test."""
    # The second term keeps a split from getting all the numbers that end in the same digit.
    place: list[Split] = ["train", "test", "train", "eval", "train"]
    placed = [(place[(rank + rank // 5) % 5], pair) for rank, pair in ranked]
    return {split: tuple(pair for at, pair in placed if at == split) for split in SPLITS}


def _number_pairs(numbers: Numbers) -> Iterator[tuple[int, Pair]]:
    for number in range(numbers.low, numbers.high + 1, numbers.step):
        if numbers.scale == 1:
            yield number // numbers.step, (str(number), number)
        elif number % numbers.scale:  # a whole number would read as an int
            yield number, (str(number / numbers.scale), number / numbers.scale)
        if numbers.spelled:
            yield number // numbers.step, (_spell(number), number)


def _clock_pairs() -> Iterator[tuple[int, Pair]]:
    """Times of day: asked for on either clock, called with on the 24-hour clock."""
    for rank in range(6 * 12, 22 * 12):
        hour, minute = divmod(rank * 5, 60)
        said = [f"{hour}:{minute:02d}"]
        if hour < 12:
            said.append(f"{hour}:{minute:02d} am")
        for words in said:
            yield rank, (words, f"{hour:02d}:{minute:02d}")


def _date_pairs() -> Iterator[tuple[int, Pair]]:
    for month, name in enumerate(_MONTHS, start=1):
        for day in range(1, 29):  # every month has these
            yield 3 * month + day, (f"{name} {day}", f"{month:02d}-{day:02d}")


def _word_pool(lists: tuple[str, str, str]) -> Pool:
    words = {split: text.split(", ") for split, text in zip(SPLITS, lists, strict=True)}
    return Pool("str", {split: tuple((word, word) for word in words[split]) for split in SPLITS})


def _choice_pool(choices: dict[str, Value]) -> Pool:
    kind: Literal["bool", "enum"] = "bool" if True in choices.values() else "enum"
    return Pool(kind, {split: tuple(choices.items()) for split in SPLITS})


def _pools() -> dict[str, Pool]:
    pools = {"clock": Pool("time", _divide(_clock_pairs())), "date": Pool("date", _divide(_date_pairs()))}
    for name, numbers in NUMBERS.items():
        pools[name] = Pool("int" if numbers.scale == 1 else "float", _divide(_number_pairs(numbers)))
    pools |= {name: _choice_pool(choices) for name, choices in CHOICES.items()}
    return pools | {name: _word_pool(lists) for name, lists in WORDS.items()}


POOLS = _pools()


@dataclass(frozen=True)
class Argument:
    """One argument of a tool's signature."""

    name: str
    pool: str
    required: bool


def arguments(tool: Tool) -> tuple[Argument, ...]:
    """The tool's arguments, in the order in which a call lists them."""
    found = []
    for word in tool.signature.split():
        name, pool = word.split(":")
        found.append(Argument(name.rstrip("?"), pool, required=not name.endswith("?")))
    return tuple(found)


class _Decks:
    """Draws values like cards, so that each is used before any comes up again.

    With ten samples a tool, independent draws would leave some enum values unseen in training.
    """

    def __init__(self, rng: random.Random, split: Split) -> None:
        self._rng = rng
        self._split = split
        self._left: dict[tuple[str, str], list[Pair]] = {}

    def draw(self, tool: str, argument: Argument) -> Pair:
        """The next (words, value) pair for this argument of this tool."""
        left = self._left.setdefault((tool, argument.name), [])
        if not left:
            left.extend(POOLS[argument.pool].pairs[self._split])
            self._rng.shuffle(left)
        return left.pop()


def _choose_optional(phrasing: str, rng: random.Random) -> str:
    return _OPTIONAL.sub(lambda part: part.group(1) if rng.random() < _PRESENT else "", phrasing)


def _wrap(request: str, rng: random.Random) -> str:
    """Say an instruction the way people do, half of the time."""
    if request.split()[0] not in _VERBS or request.endswith(("?", "please")) or rng.random() >= _WRAPPED:
        return request
    return rng.choice(_WRAPPINGS).format(request)


def _draw(tool: Tool, names: set[str], decks: _Decks) -> dict[str, Pair]:
    """Draw a pair for each named argument; a call never has the same value twice."""
    drawn: dict[str, Pair] = {}
    for argument in arguments(tool):
        if argument.name not in names:
            continue
        pair = decks.draw(tool.name, argument)
        while argument.pool in ("city", "currency") and pair in drawn.values():
            pair = decks.draw(tool.name, argument)
        drawn[argument.name] = pair
    return drawn


def _sample(tool: Tool, phrasing: str, decks: _Decks, rng: random.Random, wrap: bool) -> tuple[str, str]:
    """One request and the call it asks for. Held-out phrasings stay as they are written."""
    chosen = _choose_optional(phrasing, rng)
    drawn = _draw(tool, set(_SLOT.findall(chosen)), decks)
    request = _SLOT.sub(lambda slot: drawn[slot.group(1)][0], chosen)
    request = _wrap(request, rng) if wrap else request
    args: dict[str, Value] = {name: value for name, (_, value) in drawn.items()}
    call = json.dumps({"tool": tool.name, "args": args}, separators=(",", ":"))
    return request[0].upper() + request[1:], call


def _build_split(seed: int, split: Split, size: int) -> list[Conversation]:
    """`size` conversations: rounds over the tools in shuffled order, each tool cycling its phrasings."""
    # A generator of its own for each split: the test set stays the same when another split is resized.
    rng = random.Random(f"{seed}:{split}")
    decks = _Decks(rng, split)
    seen: set[str] = set()
    conversations: list[Conversation] = []
    while len(conversations) < size:
        turn = len(conversations) // len(TOOLS)
        for tool in rng.sample(TOOLS, len(TOOLS)):
            phrasings: tuple[str, ...] = getattr(tool, split)
            conversations.append(_fresh(tool, phrasings[turn % len(phrasings)], decks, rng, seen, split == "train"))
    return conversations[:size]


def _fresh(tool: Tool, phrasing: str, decks: _Decks, rng: random.Random, seen: set[str], wrap: bool) -> Conversation:
    """A conversation with a request not seen yet, unless the tool has no more of them."""
    for _ in range(_ATTEMPTS):
        request, call = _sample(tool, phrasing, decks, rng, wrap)
        if request not in seen:
            break
    seen.add(request)
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": request},
        {"role": "assistant", "content": call},
    ]


def build(seed: int, n_train: int, n_eval: int, n_test: int) -> dict[str, list[Conversation]]:
    """The three splits, the same for the same seed everywhere."""
    sizes: dict[Split, int] = {"train": n_train, "eval": n_eval, "test": n_test}
    return {split: _build_split(seed, split, size) for split, size in sizes.items()}


def score(expected: str, generated: str) -> dict[str, bool]:
    """Whether the generated text is JSON, and whether it is the same call as the expected one."""
    try:
        call = json.loads(generated)
    except ValueError:
        return {"parses": False, "exact": False}
    return {"parses": True, "exact": _canonical(call) == _canonical(json.loads(expected))}


def _canonical(call: object) -> str:
    """A text form that tells true from 1 and 5 from 5.0, which == does not."""
    return json.dumps(call, sort_keys=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Print one or all splits as JSON lines."""
    parser = argparse.ArgumentParser(description="Print the tool-calling data as JSON lines.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=SPLITS, help="only this split")
    for split, size in (("train", 440), ("eval", 45), ("test", 90)):
        parser.add_argument(f"--{split}", type=int, default=size, metavar="N", help="size of the split")
    options = parser.parse_args(argv)
    built = build(options.seed, options.train, options.eval, options.test)
    for split, conversations in built.items():
        if options.split in (None, split):
            for messages in conversations:
                print(json.dumps({"split": split, "messages": messages}))


if __name__ == "__main__":
    main()
