"""`tsugi recipes`: the ready runs that come with Tsugi, to look at and to begin one's own from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Debug, Json

app = typer.Typer(invoke_without_command=True, help="Ready runs that come with tsugi: list, show, copy.")


@app.callback()
def every(context: typer.Context, json: Json = False) -> None:
    """Ready runs that come with tsugi: list, show, copy one to begin from. Alone: the list."""
    if context.invoked_subcommand is None:
        ls(json)


@app.command()
def ls(json: Json = False, _debug: Debug = False) -> None:
    """List the recipes: name and what it does."""
    from tsugi_cli.config.compose import recipes as shipped
    from tsugi_cli.record.answer import Answer

    found, out = shipped(), Answer.of(json)
    width = max(len(name) for name in found)
    for name, about in found.items():
        out.tell({"name": name, "about": about}, f"{name:<{width}}  {about}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `tsugi recipes ls` lists it.")],
    json: Json = False,
    _debug: Debug = False,
) -> None:
    """Print a recipe's file: what it needs, how long it takes, what it sets."""
    from tsugi_cli.record.answer import Answer

    text = _file(name).read_text(encoding="utf-8")
    Answer.of(json).tell({"name": name, "text": text}, text.removesuffix("\n"))


@app.command()
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `tsugi recipes ls` lists it.")],
    to: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The new file; default: NAME.yaml in this folder.")
    ] = None,
    json: Json = False,
    _debug: Debug = False,
) -> None:
    """Copy a recipe to a file of your own. A file that is there already is left alone."""
    from tsugi_cli.record.answer import Answer
    from tsugi_kpool.errors import ConfigError

    source = _file(name)
    target = to or Path(source.name)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{target} cannot be written: {error.strerror}"]) from error
    said = f"{target}: change it, then run tsugi finetune recipe={target}"
    Answer.of(json).tell({"file": target}, said)


def _file(name: str) -> Path:
    """A shipped recipe's file.

    Raises:
        ConfigError: there is none of that name.
    """
    from tsugi_cli.config.compose import shipped_recipe

    return shipped_recipe(name)
