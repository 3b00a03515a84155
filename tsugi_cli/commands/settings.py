"""`tsugi settings`: every key of a run's configuration, to look up and to search."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Debug, Json


def settings(
    word: Annotated[str | None, typer.Argument(metavar="[WORD]", help="Part of a key or of what it does.")] = None,
    every: Annotated[bool, typer.Option("--all", help="The advanced ones, too.")] = False,
    json: Json = False,
    _debug: Debug = False,
) -> None:
    """List settings: key, default, type, range and what it does. Alone: the basic ones."""
    from tsugi_cli.config import describe
    from tsugi_cli.record.answer import Answer
    from tsugi_kpool.errors import ConfigError

    out = Answer.of(json)
    if word is None:
        found = [each for each in describe.settings() if each.basic or every or json]
    else:
        found = describe.search(word)
    if not found:
        raise ConfigError([describe.nothing(str(word))])
    for each in found:
        out.tell(each, describe.lines([each]))
    if word is None and not (every or json):
        more = len(describe.settings()) - len(found)
        typer.echo(
            f"{more} more with --all; tsugi settings WORD searches all of them; docs/configuration.md has them, too"
        )
