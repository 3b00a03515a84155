"""The `tsugi` command: which words there are. What each does stands in `commands`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from . import ending
from .commands import (
    completion,
    data,
    doctor,
    fleet,
    launch,
    look,
    look_up,
    recipes,
    report,
    settings,
    sideband,
    train,
    use,
)


class _Commands(TyperGroup):
    """Click would end a command whose reader has gone with code 1, which says "internal error" here."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ending.ReaderGone from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune open LLMs with LoRA on machines that are not equally fast: no replica waits for another.",
)
for command in (train.finetune, train.bench, look.console, look.stop, fleet.join, fleet.hub):
    app.command()(command)
app.command()(launch.launch)
app.command()(report.report)
app.command()(settings.settings)
app.command()(doctor.doctor)
app.command()(use.generate)
app.command()(use.export)
app.command("eval")(use.evaluate)
app.command()(completion.completion)
app.command("help")(look_up.look_up)
app.add_typer(data.app, name="data")
app.add_typer(recipes.app, name="recipes")
app.add_typer(sideband.app, name="sideband")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"tsugi {version('tsugi')}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Options of every command."""


def main() -> None:
    """Run the command line."""
    ending.run(app)


if __name__ == "__main__":
    main()
