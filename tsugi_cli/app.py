"""The `tsugi` command: parse, call, exit code. Heavy imports stay inside the commands."""

from __future__ import annotations

import errno
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tsugi_kpool.errors import ConfigError, EnvironmentError_, ExitCode, TsugiError

NO_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
"""What a disk says that is full, read-only or gone."""


LONGEST_LINE = 2_000
"""Of an error: what somebody has typed or written may be quoted in it."""


class _Commands(TyperGroup):
    """Click would end a command whose reader has gone with code 1, which says "internal error" here."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGone from error


class _ReaderGone(Exception):
    """Whoever read our output does not any more; that is theirs to decide."""


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Fine-tune open LLMs with LoRA on machines that are not equally fast: no replica waits for another.",
)
sideband = typer.Typer(no_args_is_help=True, help="Ask a running fleet how it is.")
app.add_typer(sideband, name="sideband")
data = typer.Typer(no_args_is_help=True, help="See what would be trained on, before anything trains.")
app.add_typer(data, name="data")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Such as recipe=smollm2_tools model=tiny kpool.k=2 train.lr=1e-3"),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
Run = Annotated[Path | None, typer.Option("--run", help="Run directory; default: the newest run.")]


@app.command()
def finetune(
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, start nothing.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of the live console.")] = False,
    _debug: Debug = False,
) -> None:
    """Fine-tune a model with LoRA on several replicas, each at its own pace."""
    from .launch.run import finetune as run

    raise typer.Exit(run(overrides or [], dry_run, plain, sys.stdout))


@app.command()
def bench(
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the runs and the time, start nothing.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of the progress bar.")] = False,
    json: Annotated[bool, typer.Option("--json", help="bench.json on stdout, everything else on stderr.")] = False,
    simulate: Annotated[
        bool,
        typer.Option("--simulate", help="Fleets in virtual time: replicas=1000, or replicas=[10,1000] churn=0.01"),
    ] = False,
    _debug: Debug = False,
) -> None:
    """Compare K-Pool with DDP, local SGD, DiLoCo and leaving the slowest out, on this fleet, under a scenario."""
    if simulate:
        from .bench.simulate.command import simulate as model

        raise typer.Exit(model(overrides or [], dry_run, plain, json, sys.stdout, sys.stderr))
    from .bench.compare.command import bench as compare

    raise typer.Exit(compare(overrides or [], dry_run, plain, json, sys.stdout, sys.stderr))


@app.command()
def console(
    run: Annotated[
        str | None, typer.Option("--run", help="Run directory, or latest; default: the newest run.")
    ] = None,
    speed: Annotated[
        float | None, typer.Option("--speed", min=0.01, help="Replay so many times as fast as it was; default: fast.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of the live console.")] = False,
    _debug: Debug = False,
) -> None:
    """Look at a run from another terminal while it goes on, or see a finished one again."""
    from .console.attach import show

    raise typer.Exit(show(run, speed, plain, sys.stdout))


@app.command()
def stop(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Its directory; default: the newest.")] = None,
    named: Annotated[Path | None, typer.Option("--run", help="The same.")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds that it may take to end.")] = 180.0,
    _debug: Debug = False,
) -> None:
    """End a run in good order from another terminal, as Ctrl-C does where it was started."""
    from .launch.stop import stop as end

    raise typer.Exit(end(named or run, timeout_s, sys.stdout))


@data.command()
def preview(
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option("--rows", min=1, max=1000, help="So many of the first rows.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="JSON: texts, and whether each is trained on.")] = False,
    _debug: Debug = False,
) -> None:
    """Show the first samples as the model gets them: trained tokens coloured, special tokens visible."""
    from .launch.data import preview as show

    raise typer.Exit(show(overrides or [], rows, json, sys.stdout))


@data.command()
def check(
    overrides: Overrides = None,
    json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a progress bar.")] = False,
    _debug: Debug = False,
) -> None:
    """Read, check and prepare the data, and say what became of every row. Nothing trains."""
    from .launch.data import check as look

    raise typer.Exit(look(overrides or [], json, plain, sys.stdout))


@app.command()
def recipes() -> None:
    """List the recipes that come with tsugi."""
    from .config.compose import recipes as shipped

    found = shipped()
    width = max(len(name) for name in found)
    for name, about in found.items():
        typer.echo(f"{name:<{width}}  {about}")


@sideband.command()
def status(
    run: Run = None,
    json: Annotated[bool, typer.Option("--json", help="JSON: one object, or one a line with --watch.")] = False,
    watching: Annotated[bool, typer.Option("--watch", help="Ask every second until Ctrl-C.")] = False,
    addr: Annotated[str | None, typer.Option("--addr", help="A hub elsewhere: tcp://host:51820.")] = None,
    token: Annotated[
        str | None, typer.Option("--token", help="What `tsugi sideband token` prints there; - reads stdin.")
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for the hub.")] = 3.0,
    _debug: Debug = False,
) -> None:
    """Show the fleet of a running `tsugi finetune`: who is slow, and by how much.

    Without --run or --addr it finds this user's newest run by itself.

    Exit code: 0 healthy, 10 degraded (a replica is slow or silent, or the run has failed), 7 no quorum,
    11 no hub answers; with --watch that of the last answer.
    """
    from .console.status import Question, show, watch
    from .launch.keys import token_for

    question = Question(run, timeout_s, addr, token_for(addr, token, sys.stdin))
    raise typer.Exit(watch(question, json, sys.stdout) if watching else show(question, json, sys.stdout))


@app.command()
def join(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="The hub's, such as tcp://host:51820")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="What is different on this machine, such as data.path=..."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option("--token", help="- reads it from stdin; else TSUGI_TOKEN_FILE is read, or you are asked."),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="The hub runs with sideband.insecure=true.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Agree beforehand to what the run names from outside Tsugi.")
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of the live console.")] = False,
    _debug: Debug = False,
) -> None:
    """Train one replica of a run that was started on another machine. The address and a token are all it needs.

    Where the run names functions, models or packages that do not come with Tsugi, you are asked once.
    """
    from .launch.consent import Consent
    from .launch.join import Invitation
    from .launch.join import join as start

    invitation = Invitation.read(address, token, insecure, sys.stdin)
    again = ["tsugi", "join", address, *(overrides or []), *(["--insecure"] if insecure else [])]
    consent = Consent(yes, again, sys.stdin, sys.stdout)
    raise typer.Exit(start(invitation, overrides or [], plain, sys.stdout, consent))


@app.command()
def hub(
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option("--run", help="Serve this existing run again.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of the live console.")] = False,
    _debug: Debug = False,
) -> None:
    """Run the hub alone: it trains nothing, and every replica comes with `tsugi join`."""
    from .launch.run import hub_alone

    raise typer.Exit(hub_alone(overrides or [], run, plain, sys.stdout))


@sideband.command()
def keygen(
    out: Annotated[Path, typer.Option("--out", help="The new file.")] = Path("sideband-keys.json"),
    _debug: Debug = False,
) -> None:
    """Make a hub's keys beforehand (sideband.keys=FILE), and print the tokens for members and observers."""
    from .launch.keys import keygen as make

    raise typer.Exit(make(out, sys.stdout))


@sideband.command()
def token(run: Run = None, _debug: Debug = False) -> None:
    """Print a run's tokens: whoever has the member's may train, whoever has the observer's may ask for the status."""
    from .launch.keys import show_tokens

    raise typer.Exit(show_tokens(run, sys.stdout))


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
    """Run the command line; every expected error is a few lines and an exit code, never a traceback."""
    try:
        from .record.run_dir import close_to_others

        close_to_others()
        _refuse_dashes(sys.argv[1:])
        app()
    except TsugiError as error:
        _end(error, error.exit_code)
    except (BrokenPipeError, _ReaderGone):
        sys.exit(_written(ExitCode.OK))
    except SystemExit as ended:
        sys.exit(_written(ended.code))
    except KeyboardInterrupt as error:
        _end(error, ExitCode.INTERRUPTED)
    except Exception as error:  # noqa: BLE001  (the command line's last line)
        if isinstance(error, OSError) and (reason := _of_the_machine(error)):
            _end(EnvironmentError_(reason), ExitCode.ENVIRONMENT)
        _end(error, ExitCode.INTERNAL)


def _of_the_machine(error: OSError) -> str | None:
    """What no code of ours has done: a disk that takes nothing, or a file that belongs to somebody else."""
    where = f" {error.filename}" if error.filename else ""
    if error.errno in NO_DISK:
        return f"could not write{where}: {error.strerror}"
    if isinstance(error, PermissionError) and where:
        return f"this user may not look at{where}: {error.strerror}"
    return None


def _written(code: Any) -> Any:
    """The exit code, once all output is written or is nobody's: Python would end with a code of its own."""
    try:
        sys.stdout.flush()
        return code
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError) or code:
            return code
        _say(f"could not write: {error.strerror}")
        return ExitCode.ENVIRONMENT


def _refuse_dashes(arguments: list[str]) -> None:
    """`--kpool.k=2` is what other tools take; say what ours takes."""
    for argument in arguments:
        if re.match(r"--?[a-z_]+(\.[a-z_]+)+(=|$)", argument):
            raise ConfigError([f"{argument}: settings are written without dashes: {argument.lstrip('-')}"])
        if argument in ("--multirun", "-m"):
            raise ConfigError(
                [f"{argument}: one run at a time; to compare settings: tsugi bench bench.kpool=[default,kpool.k=8]"]
            )


def _end(error: BaseException, code: ExitCode) -> None:
    if "--debug" in sys.argv:
        raise error
    if code is ExitCode.INTERNAL:
        _say(f"internal error: {error!r}\nRun again with --debug and report the traceback.")
    else:
        from .console.format import safe  # what it quotes may come from another's file

        _say("\n".join(safe(line)[:LONGEST_LINE] for line in _words(error).split("\n")))
    sys.exit(_written(code))


def _say(text: str) -> None:
    """On stderr, unless that is gone, too: the exit code must not be."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"tsugi: {text}\n")
        sys.stderr.flush()


def _words(error: BaseException) -> str:
    """One mistake stands in the line; several stand one under the other."""
    if isinstance(error, ConfigError) and len(error.problems) > 1:
        return "\n".join(
            [f"{len(error.problems)} mistakes; nothing was started", *(f"  {p}" for p in error.problems)]
        )
    return str(error) or "interrupted"


if __name__ == "__main__":
    main()
