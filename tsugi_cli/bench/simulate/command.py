"""`tsugi bench --simulate`: fleets of any size in virtual time. The story of one simulation."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TextIO

import msgspec
from rich.progress import BarColumn, Progress, TextColumn

from tsugi_cli.bench.tables import grid, machine
from tsugi_cli.console.format import clock
from tsugi_cli.console.terminal import is_terminal, terminal
from tsugi_cli.record.answer import Answer
from tsugi_cli.signals import Signals
from tsugi_kpool.errors import ExitCode, TsugiError
from tsugi_kpool.sim import Fleet, check_accounting, check_agreement

from . import modelled
from .request import Asked, read
from .scale import COLUMNS, Scale, cells, limits, measure

TURN_S = 0.3
"""Real time between two looks at signals and clock."""
FIRST_TURN_S = 1.0
"""Virtual time of the first turn, in which a large fleet joins."""


def simulate(tokens: Sequence[str], dry_run: bool, plain: bool, out: Answer) -> int:
    """Run `tsugi bench --simulate`; returns the exit code.

    Raises:
        TsugiError: configuration is wrong, or the model cannot be had.
    """
    asked = read(tokens)
    if dry_run:
        lines = [*about(asked), "Dry run: nothing was simulated."]
        out.tell({"plan": lines}, lines)
        return ExitCode.OK
    values = modelled.adapter_values(asked.simulation, asked.spec)
    found: list[Scale] = []
    with Signals(outlasts=False) as signals, Watch(out.people, plain, asked) as watch, uncollected():
        for replicas in asked.simulation.replicas:
            scale = one(asked, replicas, values, watch, signals)
            if scale is None:
                watch.message("stopped")
                return signals.exit_code
            found.append(scale)
    if out.json:
        out.put(as_json(asked, values, found))
    else:
        width = terminal(out.people).width if is_terminal(out.people) else None
        out.people.write(screen(asked, values, found, width))
    return ExitCode.OK


def one(asked: Asked, replicas: int, values: int, watch: Watch, signals: Signals) -> Scale | None:
    """Simulate one size; returns None when the user stops it."""
    began_s, seconds = time.process_time(), asked.simulation.minutes * 60.0
    watch.begin(replicas)
    fleet = modelled.fleet(asked.simulation, asked.spec, replicas, values)
    for done_s in turns(fleet, seconds):
        watch.turn(done_s)
        if signals.count:
            return None
    report = fleet.run(0.0)
    if broken := check_agreement(fleet) + check_accounting(fleet):
        raise TsugiError(f"a simulated fleet of {replicas} broke a rule, which is a mistake of ours: {broken[0]}")
    cpu_s = time.process_time() - began_s
    watch.done(replicas)
    return measure(fleet, report, asked.simulation, asked.spec, values, cpu_s)


def turns(fleet: Fleet, seconds: float, clock_s: Callable[[], float] = time.monotonic) -> Iterator[float]:
    """Let a fleet run in turns of about TURN_S of real time; yields the virtual time that has passed."""
    turn_s = FIRST_TURN_S
    while (now_s := fleet.kernel.now_s) < seconds and not fleet.kernel.stopped:
        began_s = clock_s()
        fleet.advance(min(turn_s, seconds - now_s))
        took_s = max(clock_s() - began_s, 1e-6)
        turn_s *= min(2.0, max(0.1, TURN_S / took_s))
        yield fleet.kernel.now_s


@contextmanager
def uncollected() -> Iterator[None]:
    """Switch Python's garbage collector off: a fleet is one large graph that lives to the end."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def about(asked: Asked) -> list[str]:
    """Return what is simulated, in a few lines."""
    simulation, spec = asked.simulation, asked.spec
    link = modelled.link(simulation, spec, 1)
    near = f"{link.bandwidth_bytes_per_s / modelled.MBIT:g} Mbit/s, {2000 * link.latency_s:g} ms"
    far = link.far and f"{link.far.bandwidth_bytes_per_s / modelled.MBIT:g} Mbit/s, {2000 * link.far.latency_s:g} ms"
    lossless = "; loss is not simulated" if simulation.scenario.loss else ""
    facts = {
        "scenario": f"{simulation.name}: {simulation.scenario.about}",
        "fleets": f"{', '.join(map(str, simulation.replicas))} replicas, {simulation.minutes:g} minutes each",
        "device": f"{simulation.device_step_s:g} s for a step",
        "links": f"{near} round trip" + (f"; between the halves {far}" if far else "") + lossless,
        "churn": f"{simulation.churn:.1%} of the replicas die in a minute, and are back after {simulation.back_s:g} s"
        if simulation.churn
        else "nobody dies",
        "pool": f"K={spec.kpool.k} of N={spec.kpool.n} adapters, rank {spec.lora.rank} in all, {spec.kpool.payload}",
    }
    width = max(map(len, facts))
    return [f"{name:>{width}}  {text}" for name, text in facts.items()]


def screen(asked: Asked, values: int, found: Sequence[Scale], width: int | None) -> str:
    """Return what the terminal shows at the end; with `width` columns the table's cells take several lines."""
    lines = grid([COLUMNS, *map(cells, found)])
    if width is not None and max(map(len, lines)) > width:
        lines = grid([COLUMNS, *map(cells, found)], width)
    met = [f"{scale.replicas}: {text}" for scale in found for text in limits(scale, asked.spec)]
    adapter = f"an adapter is {values} numbers, {modelled.coded_bytes(values, asked.spec)} bytes in a round"
    more = ["", "beyond a limit:", *(f"  {line}" for line in met)] if met else []
    return "\n".join(
        ["", *about(asked), "", *lines, *more, "", f"{adapter}; docs/scale.md says what is modelled", ""]
    )


def as_json(asked: Asked, values: int, found: Sequence[Scale]) -> dict[str, Any]:
    """Return all that is needed to repeat it, and every figure."""
    return {
        "simulation": msgspec.to_builtins(asked.simulation),
        "overrides": list(asked.base),
        "seed": asked.spec.seed,
        "adapter_values": values,
        "adapter_bytes": modelled.coded_bytes(values, asked.spec),
        "machine": machine(),
        "fleets": [{**asdict(scale), "limits": limits(scale, asked.spec)} for scale in found],
    }


class Watch:
    """Shows the progress; the time left is estimated from the time passed."""

    def __init__(
        self, stream: TextIO, plain: bool, asked: Asked, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream, self._clock_s = stream, clock_s
        self._sizes, self._seconds = asked.simulation.replicas, asked.simulation.minutes * 60.0
        self._work = sum(self._sizes) * self._seconds
        """The work is proportional to replicas times virtual time."""
        self._finished, self._place, self._began_s = 0.0, 0, 0.0
        self._bar: Progress | None = None
        if is_terminal(stream) and not plain:
            columns = TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[said]}")
            self._bar = Progress(*columns, console=terminal(stream), transient=True)
            self._task = self._bar.add_task("", total=self._work, said="")

    def message(self, text: str) -> None:
        """Show a line that stays."""
        if self._bar is not None:
            self._bar.console.print(text)
        else:
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def begin(self, replicas: int) -> None:
        """Begin a fleet of this size."""
        self._began_s = self._clock_s()
        self.turn(0.0, replicas)

    def turn(self, done_s: float, replicas: int = 0) -> None:
        """Show that so much virtual time has passed."""
        if self._bar is not None:
            size = replicas or self._sizes[self._place]
            done = self._finished + size * done_s
            self._bar.update(
                self._task, description=f"{size} replicas", completed=done, said=self._said(size * done_s, done)
            )

    def done(self, replicas: int) -> None:
        """End that fleet."""
        self._finished += replicas * self._seconds
        self._place += 1
        if self._bar is None:
            took_s = self._clock_s() - self._began_s
            self.message(f"{self._place}/{len(self._sizes)} fleets  {replicas} replicas took {took_s:.0f} s")

    def _said(self, of_this: float, done: float) -> str:
        """Return the time left, at the present fleet's pace."""
        passed_s = self._clock_s() - self._began_s
        if not of_this or passed_s < 1.0:
            return ""
        return f"about {clock((self._work - done) * passed_s / of_this)} left"

    def __enter__(self) -> Watch:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
