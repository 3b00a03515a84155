"""`tsugi help`: a command's help, for those who ask for it in this way."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def look_up(
    context: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND]...", help="Such as data preview.")] = None,
) -> None:
    """Show what a command does; as COMMAND --help."""
    from tsugi_cli.config.schema import did_you_mean
    from tsugi_kpool.errors import ConfigError

    at: Any = context.find_root()
    for word in words or []:
        known = sorted(getattr(at.command, "commands", {}))
        found = at.command.get_command(at, word) if known else None
        if found is None:
            there = f" (there are {', '.join(known)})" if known else ""
            raise ConfigError([f"{at.command_path} {word}: no such command{did_you_mean(word, known)}{there}"])
        at = found.context_class(found, info_name=word, parent=at)
    typer.echo(at.get_help())
