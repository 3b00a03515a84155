"""Replays a transcript: its commands drive the real hub and replicas, and what they say stands below each command.

A line that begins with `>` is a command, one that is indented is an answer, everything else is for the reader.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from tests.support import hub_plan, kpool
from tsugi_kpool.core.checkpoint import ANCHORS, part_name
from tsugi_kpool.core.messages.facts import MachineFacts
from tsugi_kpool.core.settings import KPool, Trigger

from .replica_side import STEP_S, Process
from .world import World


def replayed(text: str) -> str:
    """The transcript with the answers that the code gives today."""
    story, lines = Story(), []
    for line in text.splitlines():
        if line.startswith(">"):
            lines += [line, *story.perform(line[1:].strip())]
        elif not line.startswith("  "):
            lines.append(line)
    return "\n".join(lines) + "\n"


class Story(World):
    """The commands. `who` is a list of replicas, such as 0,2."""

    def perform(self, command: str) -> list[str]:
        """Do what a command says; the lines that it leads to, or none where it says `quietly`."""
        self.lines = []
        told = command.removesuffix(", quietly")
        for pattern, method in COMMANDS:
            if found := re.fullmatch(pattern, told):
                method(self, *found.groups())
                self.settle()
                return self.lines if told == command else []
        raise ValueError(f"no such command: {command}")

    def run(self, settings: str) -> None:
        pairs = {key: json.loads(value) for key, value in (each.split("=") for each in settings.split())}
        names = {each.name for each in fields(KPool)}
        pool = {key: pairs.pop(key) for key in list(pairs) if key in names}
        self.begin(hub_plan(kpool=kpool(**{"trigger": Trigger.COUNT, "min_steps": 1, **pool}), **pairs))

    def time(self, seconds: str) -> None:
        self.pass_time(float(seconds))

    # --- replicas -----------------------------------------------------------------------------------------

    def hello(self, who: str, config_hash: str | None) -> None:
        for number in _numbers(who):
            life = self.replicas[number].life + 1 if number in self.replicas else 0
            process = self.replicas[number] = Process(number, life, self.plan.kpool.n)
            self.ends[process.route] = process
        self._each(who, lambda process: process.hello(config_hash or self.plan.config_hash))

    def asks(self, who: str) -> None:
        self._each(who, Process.ask)

    def trains(self, who: str, steps: str) -> None:
        def train(process: Process) -> None:
            for _ in range(int(steps)):
                process.train(bool(self.plan.samples), STEP_S)
            self.beat(process)

        self._each(who, train)

    def beats(self, who: str) -> None:
        self._each(who, self.beat)

    def reduces(self, who: str) -> None:
        collective = self.collective
        if collective is None or len(collective.joined_s) < len(collective.fire.members):
            raise ValueError("not all members have joined the collective")
        self._each(who, lambda process: process.on_reduced(collective))

    def breaks(self, who: str) -> None:
        self._each(who, Process.lose)

    def writes(self, who: str) -> None:
        hub = self.hub.hub
        first = min(hub.present)  # it writes what is the same on all
        self._each(
            who,
            lambda process: process.saved(
                [part_name(process.number), *([ANCHORS] if process.number == first else [])], hub.over
            ),
        )

    def dies(self, who: str) -> None:
        self._each(who, lambda process: setattr(process, "dead", True))

    def is_cut(self, who: str) -> None:
        self._each(who, lambda process: setattr(process, "cut", True))

    def is_back(self, who: str) -> None:
        for number in _numbers(who):
            self.replicas[number].connect()
            self.ends[self.replicas[number].route] = self.replicas[number]

    def paces(self, who: str, seconds: str) -> None:
        self._each(who, lambda process: process.run_at(float(seconds), self.now_s))

    def machine(self, who: str, facts: str) -> None:
        values = dict(each.split("=") for each in facts.split())
        known = MachineFacts(**{key: float(value) for key, value in values.items()})
        self._each(who, lambda process: setattr(process, "machine", known))

    def _each(self, who: str, act: Callable[[Process], Any]) -> None:
        """One after the other, each with all that follows from it."""
        for number in _numbers(who):
            act(self.replicas[number])
            if not self.replicas[number].dead:
                self.flush(self.replicas[number])
            self.settle()

    # --- the hub and its owner ----------------------------------------------------------------------------

    def died(self, who: str, reason: str) -> None:
        self.hub.perform(self.hub.hub.leave(dict.fromkeys(_numbers(who), reason), self.now_s), self.now_s)

    def checkpoint(self) -> None:
        self.hub.hub.save()

    def hub_dies(self, record: str | None) -> None:
        if record:
            self.hub.dies_after = record
        else:
            self.hub.die()

    def hub_restarts(self) -> None:
        self.hub.restart(self.now_s)


def _numbers(who: str) -> list[int]:
    return [int(each) for each in who.split(",")]


WHO = r"replicas? ([\d,]+)"
COMMANDS: tuple[tuple[str, Callable[..., None]], ...] = (
    (r"run (.*)", Story.run),  # key=value, of KPool or HubPlan
    (r"time ([\d.]+) s", Story.time),
    (rf"{WHO} says? hello(?: with configuration (\w+))?", Story.hello),
    (rf"{WHO} asks? for data", Story.asks),
    (rf"{WHO} trains? (\d+)", Story.trains),
    (rf"{WHO} beats?", Story.beats),
    (rf"{WHO} reduces?", Story.reduces),
    (rf"the collective breaks on {WHO}", Story.breaks),
    (rf"{WHO} ha(?:s|ve) written (?:its|their) files", Story.writes),
    (rf"{WHO} dies?", Story.dies),
    (rf"{WHO} (?:is|are) cut off", Story.is_cut),
    (rf"{WHO} (?:is|are) back", Story.is_back),
    (rf"{WHO} takes? ([\d.]+) s for a step", Story.paces),
    (rf"{WHO} runs? on a machine with (.*)", Story.machine),
    (rf"launcher: {WHO} has died, (.*)", Story.died),
    (r"owner: a checkpoint is due", Story.checkpoint),
    (r"hub dies(?: after it has written (\w+))?", Story.hub_dies),
    (r"hub restarts", Story.hub_restarts),
)
"""What a transcript may say, and what it does."""
