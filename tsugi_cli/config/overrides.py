"""From what a user types (`recipe=... model=tiny kpool.k=2`) to overrides that Hydra reads as meant.

Hydra's grammar takes a path with a bracket for an error and a git hash such as 5e51234 for infinity; here
the type of the key decides. On the command line a value is literal: `${...}` interpolates in YAML only.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from . import files, names
from .schema import choices, did_you_mean, leaf_types, no_such_key, takes_list, takes_numbers, takes_text

DEFAULT_RECIPE = "smollm2_tools"
OWN_DATA = "own_data"
"""The recipe of `data=FILE` where none is named: nobody's data is trained with the name and the rates of a demo."""

READERS = {"model": "hf", "data": "jsonl"}
"""Group -> its option that reads what a path names."""
GGUF = "gguf"
"""And the option of `model` that reads a file."""
NAMED = {
    "model": ("source", "path", "package", "file", "revision"),
    "data": ("builder", "path", "scorer", "eval", "test", "mix", "format", "columns", "split", "subset", "revision"),
}
"""Group -> its keys that say what is taken; the others say how."""

PATHS = ("data.path", "data.eval", "data.test")
"""One path, or a list of them."""
SWITCHES = {"yes": "true", "on": "true", "no": "false", "off": "false"}
"""YAML's other words for true and false, which Hydra takes for texts."""

# What Hydra reads as it stands there: numbers, true, false, null, words.
_PLAIN = re.compile(r"[\w.+-]+", re.ASCII)
_LONGEST_PLAIN = 60


@dataclass
class CommandLine:
    """A command line, sorted; `problems` says what could not be understood."""

    recipe: str = DEFAULT_RECIPE
    """The last one that was named."""
    choices: dict[str, str] = field(default_factory=dict)
    """Group -> its option."""
    values: dict[str, str] = field(default_factory=dict)
    """Dotted key -> text as typed."""
    problems: list[str] = field(default_factory=list)
    chosen: bool = False
    """A recipe was named."""
    unsure: set[str] = field(default_factory=set)
    """Sections of which something was not understood."""

    def refuse(self, problem: str, section: str = "") -> None:
        """Note a mistake."""
        self.problems.append(problem)
        self.unsure.add(section)

    def outdone(self) -> list[str]:
        """Keys of a recipe that the command line has chosen against: a section, or with a path what it names."""
        whole = [group for group, option in self.choices.items() if READERS.get(group) != option]
        read = [group for group in self.choices if group not in whole]
        return whole + [f"{group}.{name}" for group in read for name in NAMED[group]]

    def hydra_overrides(self) -> list[str]:
        """The same request in Hydra's grammar; ++ because a user's recipe may lack the key."""
        types = leaf_types()
        chosen = [f"{group}={option}" for group, option in self.choices.items()]
        return chosen + [f"++{key}={_written(key, types[key], text)}" for key, text in self.values.items()]


def read(tokens: Sequence[str]) -> CommandLine:
    """Sort the tokens of a command line. The last of several equal keys wins, as with shell options."""
    request = CommandLine()
    groups: dict[str, str] = {}
    for token in tokens:
        _sort(request, groups, token)
    for group, option in groups.items():
        _choose(request, group, option)
    if "data.mix" in request.values and not groups.get("data"):
        request.choices["data"] = READERS["data"]
        request.values.setdefault("data.path", "null")
    if not request.chosen and request.choices.get("data") == READERS["data"]:
        request.recipe = OWN_DATA
        if request.values.get("data.path", "null") != "null":
            request.values.setdefault("name", run_name(request.values["data.path"]))
    return request


def _sort(request: CommandLine, groups: dict[str, str], token: str) -> None:
    """Put one token where it belongs: a recipe, a group's option, a value, or a refusal."""
    key, equals, text = token.partition("=")
    key = key.strip().removeprefix("+").removeprefix("+")  # Hydra's "add"; harmless where the key is known
    if key.startswith("~"):
        request.refuse(f"{token}: nothing can be removed, only set to another value", key[1:].split(".")[0])
    elif not equals or not key.strip("-"):
        request.refuse(f"{token}: not key=value; {_example(key.lstrip('-'))}")
    elif key.startswith("-"):
        request.refuse(f"{token}: write {token.lstrip('-')}", key.lstrip("-").split(".")[0])
    elif key == "recipe":
        request.recipe, request.chosen = unquoted(text), True
    elif key in group_options():
        groups[key] = unquoted(text)
    elif (key := names.SPELLED.get(key, key)) in leaf_types():
        _take_value(request, key, text)
    else:
        _unknown(request, key)


def run_name(path: str) -> str:
    """A run's name from its data: the file's, folder's or data set's own, in what a directory's name may hold."""
    first = path.strip("[]").split(",")[0].strip("'\" ")
    stem = Path(first.rstrip("/")).name
    while (shorter := Path(stem).stem) != stem and files.is_data(stem):
        stem = shorter
    kept = re.sub(r"[^\w.+-]+", "_", stem).strip("_.+-")[:_LONGEST_PLAIN]
    return kept or OWN_DATA


@cache
def conf_dir() -> Path:
    """The shipped conf/, wherever Tsugi is installed."""
    return Path(str(importlib.resources.files("tsugi_cli.conf")))


@cache
def recipes_dir() -> Path:
    """The shipped recipes/, wherever Tsugi is installed."""
    return Path(str(importlib.resources.files("tsugi_cli.recipes")))


@cache
def group_options() -> dict[str, list[str]]:
    """Group -> names of its options."""
    found: dict[str, list[str]] = {}
    for path in sorted(conf_dir().glob("*/*.yaml")):
        found.setdefault(path.parent.name, []).append(path.stem)
    return found


@cache
def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in recipes_dir().glob("*.yaml"))


def no_such_option(group: str, option: str) -> str:
    """The text for an option that a group does not have."""
    known = group_options()[group]
    if group == "data" and (near := files.near_file(option)):
        return f"{group}={option}: no such file{near}"
    text = f"{group}={option}: no such {group}{did_you_mean(option, known)}"
    text += f" ({', '.join(known)})" if text.endswith("?") else f"; there are {', '.join(known)}"
    if group == "model":
        return f"{text}; for a hub id without a slash write model=hf model.path={option}"
    return text


def quoted(text: str) -> str:
    """A Hydra literal that gives back exactly this text."""
    # OmegaConf's turn comes last, so its escape is made first: \${ is no interpolation.
    text = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)
    # Backslashes count only before a quote, ours at the end included.
    text = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + (r"\'" if found[2] else ""), text)
    return f"'{text}'"


def _take_value(request: CommandLine, key: str, text: str) -> None:
    hint = leaf_types()[key]
    if "," in text and not takes_text(hint) and not takes_list(hint):
        request.refuse(f"{key}={text}: one value at a time", key.partition(".")[0])
        return
    request.values[key] = unquoted(text) if key in (*PATHS, "model.path") else _as_yaml(hint, text)


def unquoted(text: str) -> str:
    """A name without the quotes that a shell has left around it, unless a file is called so."""
    plain = text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" else text
    return text if files.is_file(text) or files.is_dir(text) else plain


def _as_yaml(hint: Any, text: str) -> str:
    """What people are used to write for true, false and null, where it can mean nothing else."""
    parts, word = getattr(hint, "__args__", (hint,)), text.casefold()
    if text in choices(hint):
        return text
    if bool in parts and word in SWITCHES:
        return SWITCHES[word]
    if type(None) in parts and (text == "None" or (word == "none" and not takes_text(hint))):
        return "null"
    return text


def _unknown(request: CommandLine, key: str) -> None:
    section, dot, _ = key.partition(".")
    inside = [known for known in leaf_types() if known.startswith(f"{key}.")]
    if inside:  # a section that is no group
        request.refuse(f"{key}: set one of its keys, such as {inside[0]}=...", section)
    else:
        others = (*group_options(), "recipe", "resume") if not dot else ()
        request.refuse(no_such_key(key, others), section)


def _choose(request: CommandLine, group: str, option: str) -> None:
    """Take a group's option; a path or hub id stands for the option that reads it."""
    if option in group_options()[group]:
        request.choices[group] = option
    elif (reader := _reader(group, option)) is None:
        sweep = "," in option and set(option.split(",")) <= set(group_options()[group])
        reason = f"{group}={option}: one value at a time" if sweep else no_such_option(group, option)
        request.refuse(reason, group)
    elif request.values.get(f"{group}.path", option) != option:
        other = f"{group}.path={request.values[f'{group}.path']}"
        request.refuse(f"{group}={option} and {other} contradict each other; give one of them", group)
    else:
        request.choices[group] = reader
        request.values[f"{group}.path"] = option


def _reader(group: str, option: str) -> str | None:
    if group == "model" and option.endswith(".gguf"):
        return GGUF
    if group == "model" and ("/" in option or files.is_dir(option)):
        return READERS[group]
    if group == "data":
        each = option.strip("[]").split(",")
        looks = all("/" in text or files.GLOB.search(text) or files.is_data(text) for text in each)
        if looks or files.is_file(option) or files.is_dir(option):
            return READERS[group]
    return None


def _written(key: str, hint: Any, text: str) -> str:
    """A value in Hydra's grammar. A comma may stand in a file's name: what is there is one path."""
    if key in PATHS and "[" not in text and (files.is_file(text) or files.is_dir(text) or "," not in text):
        return "null" if text == "null" else quoted(text)
    return _literal(hint, text)


def _literal(hint: Any, text: str) -> str:
    if takes_list(hint) and (items := list_items(hint, text)) is not None:
        numbers = takes_numbers(hint) and all(_PLAIN.fullmatch(item) for item in items)
        return f"[{','.join(items if numbers else map(quoted, items))}]"
    if takes_text(hint):
        return "null" if text == "null" and type(None) in getattr(hint, "__args__", ()) else quoted(text)
    # What is longer is no number that can be meant, and Hydra would not say whose value it cannot convert.
    return text if _PLAIN.fullmatch(text) and len(text) <= _LONGEST_PLAIN else quoted(text)


def list_items(hint: Any, text: str) -> list[str] | None:
    """The items of a list, with or without brackets and quotes; None if this text is better left whole."""
    bracketed = text.startswith("[") and text.endswith("]")
    # A bare module name is a list of one: as a text, PEFT would match it against whole dotted paths, in vain.
    if takes_text(hint) and not bracketed and "," not in text and not text.isidentifier():
        return None
    inner = text[1:-1] if bracketed else text
    return [re.sub(r"""^(['"])(.*)\1$""", r"\2", part.strip()) for part in inner.split(",") if part.strip()]


def _example(word: str) -> str:
    """What somebody who gave a word without "=" may have meant."""
    if word in recipe_names():
        return f"did you mean recipe={word}?"
    if groups := [group for group, options in group_options().items() if word in options and len(options) > 1]:
        return f"did you mean {groups[0]}={word}?"
    if word.endswith((".yaml", ".yml")):
        return f"did you mean recipe={word}?"
    if files.is_data(word):
        return f"did you mean data={word}?"
    if word == "resume":
        return "write resume=last, or resume= and a run directory"
    if word in leaf_types() or word in group_options():
        return f"write {word}=VALUE"
    return "write for example kpool.k=2"
