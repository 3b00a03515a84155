"""`tsugi recipes`: the ready runs that come with Tsugi, to look at and to begin one's own from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Debug

app = typer.Typer(invoke_without_command=True, help="Ready runs that come with tsugi: list, show, copy.")


@app.callback()
def every(context: typer.Context) -> None:
    """Ready runs that come with tsugi: list, show, copy one to begin from. Alone: the list."""
    if context.invoked_subcommand is None:
        ls()


@app.command()
def ls(_debug: Debug = False) -> None:
    """List the recipes: name and what it does."""
    from tsugi_cli.config.compose import recipes as shipped

    found = shipped()
    width = max(len(name) for name in found)
    for name, about in found.items():
        typer.echo(f"{name:<{width}}  {about}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `tsugi recipes ls` lists it.")],
    _debug: Debug = False,
) -> None:
    """Print a recipe's file: what it needs, how long it takes, what it sets."""
    typer.echo(_file(name).read_text(encoding="utf-8"), nl=False)


@app.command()
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `tsugi recipes ls` lists it.")],
    to: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The new file; default: NAME.yaml in this folder.")
    ] = None,
    _debug: Debug = False,
) -> None:
    """Copy a recipe to a file of your own. A file that is there already is left alone."""
    from tsugi_kpool.errors import ConfigError

    source = _file(name)
    target = to or Path(source.name)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{target} cannot be written: {error.strerror}"]) from error
    typer.echo(f"{target}: change it, then run tsugi finetune recipe={target}")


def _file(name: str) -> Path:
    """A shipped recipe's file.

    Raises:
        ConfigError: there is none of that name.
    """
    from tsugi_cli.config.compose import shipped_recipe

    return shipped_recipe(name)
