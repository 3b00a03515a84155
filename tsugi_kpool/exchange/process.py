"""The exchange's process: `python -m tsugi_kpool.exchange.process --at=HOST:PORT`, with its orders on stdin, in JSON.

It says where it listens in its first line of output, and what has happened in each further one, all JSON. It ends
with its input, and with its parent.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
from safetensors import SafetensorError, safe_open

from tsugi_kpool.core.rounds.closing import Quorum
from tsugi_kpool.errors import ExitCode, MachineError, TsugiError
from tsugi_kpool.system import end_with_parent

from .books import Unwritten
from .certificates import member_credentials, server_context, server_credentials
from .reduction import LEFT, Left, left_of
from .rounds import EVERYBODY
from .server import Exchange

REPORT_S = 0.5
ANCHOR = "anchor"
"""As engine.state has it, which needs torch."""
NOTHING_LEFT = (
    "the checkpoint has nothing of what coding the means had lost: at most half a step of the code is gone, once"
)


class Orders(msgspec.Struct, frozen=True):
    """What an exchange must know. Secrets travel by a pipe, never in a command line."""

    folder: str
    seats: int
    hub_secret: str
    member_secret: str
    adapters: int
    run: str
    """Its name."""
    begin: str = ""
    """The anchors' file of the checkpoint that the run goes on from; empty: it begins."""
    quorum: Quorum = EVERYBODY
    """Whom a round waits for."""
    lost: dict[int, tuple[int, int]] = {}
    """What the process before this one had not written down (`Report.unwritten`)."""


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an exchange says of itself, as totals since it began."""

    port: int
    received: int = 0
    sent: int = 0
    rounds: int = 0
    behind: str = ""
    note: str = ""
    """What a user should know of how it has begun."""
    refused: dict[str, int] = {}
    unwritten: dict[int, tuple[int, int]] = {}
    """Adapter -> generation and round of its newest result that is not on the disk: gone with this process."""
    error: str = ""
    """Why it does not begin, or has ended."""


async def serve(at: str, orders: Orders, ended: asyncio.Event) -> None:
    """Be the exchange until `ended`.

    Args:
        at: HOST:PORT; port 0 takes a free one.
        orders: What it must know.
        ended: Set when its owner wants no exchange any more.
    """
    context = server_context(
        server_credentials(orders.hub_secret), member_credentials(orders.member_secret).certificate
    )
    folder, seats = Path(orders.folder), orders.seats
    left, note = begun(Path(orders.begin)) if orders.begin else ({}, "")
    unwritten = orders.lost

    def tell(found: Unwritten) -> None:
        nonlocal unwritten
        unwritten = dict(found)
        say(_report(exchange, port, unwritten))

    words = (seats, orders.adapters, orders.run, left, orders.quorum)
    exchange = Exchange(orders.hub_secret, context, folder, *words, orders.lost, tell)
    host, _, wanted = at.rpartition(":")
    port = exchange.open(host, int(wanted))
    told = Report(port, note=note, unwritten=unwritten)
    say(told)
    try:
        while not ended.is_set() and not exchange.answers.failed.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), REPORT_S)
            report = _report(exchange, port, unwritten)
            if report != told:
                say(told := report)
    finally:
        await exchange.close()
    if exchange.answers.failure is not None:
        raise exchange.answers.failure


def begun(path: Path) -> tuple[dict[int, Left], str]:
    """Return what a checkpoint has of what is left over, and what is to be said where it has none.

    Raises:
        MachineError: the file cannot be read, or holds what cannot be.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            if LEFT not in file.keys():  # noqa: SIM118  (it is no mapping)
                return {}, NOTHING_LEFT
            whole, size = file.get_tensor(LEFT), file.get_slice(ANCHOR).get_shape()[1]
        return left_of(whole, size), ""
    except (OSError, SafetensorError, ValueError, IndexError) as error:
        raise MachineError(f"the exchange cannot go on from {path}: {error}") from error


def _report(exchange: Exchange, port: int, unwritten: dict[int, tuple[int, int]]) -> Report:
    counts, refused = exchange.counts, dict(exchange.refused)
    return Report(port, *exchange.moved(), counts.rounds, counts.behind, refused=refused, unwritten=unwritten)


def say(report: Report) -> None:
    """Write a line to our owner; one who has gone does not read it."""
    with suppress(OSError):
        sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
        sys.stdout.buffer.flush()


async def _main(at: str) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    orders = msgspec.json.decode(await loop.run_in_executor(None, sys.stdin.buffer.readline), type=Orders)
    pipe = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(pipe), sys.stdin.buffer)

    async def until_the_end() -> None:
        await pipe.read()
        ended.set()

    waiting = loop.create_task(until_the_end())
    try:
        await serve(at, orders, ended)
    finally:
        waiting.cancel()


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--at", required=True)
    arguments = parser.parse_args()
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the launcher, which ends us in order
    try:
        asyncio.run(_main(arguments.at))
    except TsugiError as error:
        say(Report(0, error=str(error)))
        return error.exit_code
    except msgspec.MsgspecError as error:
        say(Report(0, error=f"these are no orders: {error}"))
        return ExitCode.INTERNAL
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
