"""At the end of a run whose replicas are elsewhere: what is waited for, and what whoever waits is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import hub_plan
from tests.unit.test_slot_requests import hello
from tsugi_cli.launch import bringing
from tsugi_cli.launch.bringing import adapter_words, bring_home, checkpoint_words
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.members import Member

pytestmark = pytest.mark.timeout(60)


class Checkpoints:
    """One is on its way for some turns."""

    def __init__(self, home: Home, newest: Path | None) -> None:
        self._home, self._newest = home, newest

    @property
    def comes(self) -> bool:
        return self._home.turns < self._home.checkpoint_turns

    def newest_folder(self) -> Path | None:
        return self._newest


class Home:
    """The hub's machine; replica 0 is elsewhere, and has ended with an adapter."""

    def __init__(self, newest: Path | None = None) -> None:
        hub = Hub(hub_plan(replicas=1, joinable=1, config="seed: 0", supervised=False), 0.0)
        hub.slots.hold("a", 0, 0.0)
        hub.members[0] = Member(hello(0, "i"), 0.0, 0.0, gone=True, formed=True)
        self.said: list[str] = []
        self.notes: list[str] = []
        self.turns = 0
        self.checkpoint: tuple[int, int, int] | None = (0, 3_000_000, 12_000_000)
        self.adapter: tuple[str, int, int] | None = ("a", 0, 9_000)
        self.checkpoint_turns = self.adapter_turns = 3
        self.fleet = SimpleNamespace(
            hub=SimpleNamespace(ask=lambda question: question(hub), alive=True),
            checkpoints=Checkpoints(self, newest),
            turn=self.turn,
            process_watch=SimpleNamespace(wait=lambda timeout_s: None),
            console=SimpleNamespace(message=self.said.append),
            recorder=SimpleNamespace(tell=lambda note: self.notes.append(note.text)),
        )
        pending = lambda tickets: self.turns < self.checkpoint_turns + self.adapter_turns  # noqa: E731
        collecting = SimpleNamespace(
            begin=lambda: None, pending=pending, coming=lambda: self.adapter, problems=[], given_by=""
        )
        self.serving = SimpleNamespace(
            arrivals=SimpleNamespace(coming=lambda: self.checkpoint), collecting=collecting
        )
        self.signals = SimpleNamespace(count=0)

    def turn(self) -> None:
        self.turns += 1
        if self.turns > 1000:
            raise AssertionError("it waits for ever")

    def bring(self, tmp_path: Path) -> None:
        paths = SimpleNamespace(adapter=tmp_path / "adapter")
        bring_home(self.fleet, self.serving, paths, self.signals)  # type: ignore[arg-type]


def test_whoever_waits_is_told_who_gives_what_how_much_is_here_and_what_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(bringing, "SAY_S", 0.0)
    home = Home(newest=Path("v000007"))
    home.bring(tmp_path)
    checkpoint = (
        "replica 0 (host) gives the last checkpoint: 3.0 MB of 12.0 MB. Ctrl-C ends the wait: then the newest one "
        "here is v000007, and what was trained after it can only be gone on from elsewhere"
    )
    adapter = (
        "replica 0 (host) gives the adapter: 0 B of 9.0 kB. Ctrl-C ends the wait: then the adapter is on replica 0 "
        "(host) alone"
    )
    assert home.said == [checkpoint] * 3 + [adapter] * 3
    assert home.notes == ["no replica has given its adapter to this machine; it is on replica 0 (host)"]


def test_ctrl_c_ends_the_wait_and_a_short_one_is_not_talked_of(tmp_path):
    home = Home()
    home.checkpoint_turns = home.adapter_turns = 10**9
    home.fleet.process_watch.wait = lambda timeout_s: setattr(home.signals, "count", 1)
    home.bring(tmp_path)
    assert (home.turns, home.said) == (1, [])


def test_where_nobody_gives_anything_it_says_so():
    home = Home()
    home.checkpoint = home.adapter = None
    said = checkpoint_words(home.fleet, home.serving)  # type: ignore[arg-type]
    assert said.startswith("nobody gives the last checkpoint yet. Ctrl-C ends the wait: then there is none here yet,")
    assert adapter_words(home.fleet, home.serving.collecting).startswith("nobody gives the adapter yet.")  # type: ignore[arg-type]
