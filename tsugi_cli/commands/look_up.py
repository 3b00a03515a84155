"""`tsugi help`: a command's help, for those who ask for it in this way."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import Annotated, Any

import typer

from .options import Json


def look_up(
    context: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND]...", help="Such as data preview.")] = None,
    json: Json = False,
) -> None:
    """Show what a command does; as COMMAND --help."""
    from tsugi_cli.config.schema import did_you_mean
    from tsugi_cli.record.answer import Answer
    from tsugi_kpool.errors import ConfigError

    at: Any = context.find_root()
    for word in words or []:
        known = sorted(getattr(at.command, "commands", {}))
        found = at.command.get_command(at, word) if known else None
        if found is None:
            there = f" (there are {', '.join(known)})" if known else ""
            raise ConfigError([f"{at.command_path} {word}: no such command{did_you_mean(word, known)}{there}"])
        at = found.context_class(found, info_name=word, parent=at)
    if not json:
        typer.echo(at.get_help())
        return
    with redirect_stdout(StringIO()) as paper:  # Typer prints it, and returns nothing
        text = at.get_help()
    Answer.of(json).put({"command": at.command_path, "help": paper.getvalue() or text})
