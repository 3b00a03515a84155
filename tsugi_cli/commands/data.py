"""`tsugi data`: what would be trained on, before anything trains."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Debug, Json, Overrides

app = typer.Typer(no_args_is_help=True, help="See what would be trained on, before anything trains.")


@app.command()
def preview(
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option("--rows", min=1, max=1000, help="So many of the first rows.")] = 3,
    json: Json = False,
    _debug: Debug = False,
) -> None:
    """Show the first samples as the model gets them: trained tokens coloured, special tokens visible."""
    from tsugi_cli.launch.data import preview as show
    from tsugi_cli.record.answer import Answer

    raise typer.Exit(show(overrides or [], rows, Answer.of(json)))


@app.command()
def check(
    overrides: Overrides = None,
    json: Json = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a progress bar.")] = False,
    _debug: Debug = False,
) -> None:
    """Read, check and prepare the data, and say what became of every row. Nothing trains."""
    from tsugi_cli.launch.data import check as look
    from tsugi_cli.record.answer import Answer

    raise typer.Exit(look(overrides or [], plain, Answer.of(json)))
