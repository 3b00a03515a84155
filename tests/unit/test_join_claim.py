"""How `tsugi join` asks for its place: the exit code says why there is none, and `--wait` waits for what changes."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from tests.support import hub_plan
from tsugi_cli.launch import claim as claiming
from tsugi_cli.launch import preparing, refusals
from tsugi_cli.launch.claim import Claim
from tsugi_cli.launch.preparing import Onlooker, apart
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.hub import slots
from tsugi_kpool.core.hub.slots import ABOUT_TO, BUSY, ENDED, NONE_MISSING, TOO_EARLY, UNHEARD, may_pass_s
from tsugi_kpool.core.messages import Slot
from tsugi_kpool.errors import ExitCode, LaunchError, SidebandError, TsugiError
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.observer import REFUSED, Observer

SLOT = Slot("ticket", 1, "run", "seed: 0", "c0ffee")
NOBODY = SidebandError("no hub answers at tcp://h:1: nobody listens there (connection refused)")


def refused(reason: str) -> LaunchError:
    return LaunchError(f"the hub at tcp://h:1 {REFUSED}{reason}")


class Hub:
    """Answers one thing after the other."""

    def __init__(self, *answers: Slot | TsugiError) -> None:
        self._answers = list(answers)

    @property
    def left(self) -> int:
        return len(self._answers)

    def ask(self, question, kind, timeout_s) -> Slot:
        answer = self._answers.pop(0)
        if isinstance(answer, TsugiError):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    monkeypatch.setattr(refusals, "time", SimpleNamespace(sleep=lambda seconds: None))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NOBODY, ExitCode.UNREACHABLE),
        (refused(f"{TOO_EARLY}: 0 of 2 have joined"), ExitCode.TOO_EARLY),
        (refused(ENDED), ExitCode.OVER),
        (refused(f"{NONE_MISSING}: 2 of 2 have joined"), ExitCode.FULL),
        (refused(BUSY), ExitCode.LAUNCH),
        (LaunchError("the hub answers with numbers that cannot be"), ExitCode.LAUNCH),
    ],
)
def test_the_exit_code_says_why_there_is_no_place(error, code):
    with pytest.raises(TsugiError) as found:
        Claim(Hub(error), "ticket").ask_first(False, print)
    assert found.value.exit_code == code


def test_who_waits_gets_its_place_when_the_hub_is_there_and_the_run_has_begun():
    """Each reason is said once, not at every question."""
    said: list[str] = []
    hub = Hub(NOBODY, NOBODY, refused(TOO_EARLY), SLOT)
    assert Claim(hub, "ticket").ask_first(True, said.append) == SLOT
    assert len(said) == 2
    assert "nobody listens there" in said[0]
    assert TOO_EARLY in said[1]


@pytest.mark.parametrize(
    "reason", [f"0 of 1 have joined, {ABOUT_TO}", f"1 of 1 have joined, but replica 1 {UNHEARD}"]
)
def test_a_place_of_somebody_who_may_be_gone_is_waited_for_though_nobody_asked_to_wait(reason):
    """Until it is free, until it is really taken, or for so long as a silent one keeps it."""
    said: list[str] = []
    unsure, taken = refused(f"{NONE_MISSING}: {reason}"), refused(f"{NONE_MISSING}: 1 of 1 have joined")
    assert Claim(Hub(unsure, unsure, SLOT), "ticket").ask_first(False, said.append) == SLOT
    assert len(said) == 1
    assert f"waiting for up to {may_pass_s(reason):g} s" in said[0]
    with pytest.raises(TsugiError, match=r"1 of 1 have joined$") as found:
        Claim(Hub(unsure, taken), "ticket").ask_first(False, print)
    assert found.value.exit_code == ExitCode.FULL
    hub = Hub(*[unsure] * 100)
    with pytest.raises(TsugiError) as found:
        Claim(hub, "ticket").ask_first(False, print)
    assert found.value.exit_code == ExitCode.FULL
    assert 100 - hub.left == may_pass_s(reason) / refusals.PAUSE_S + 1


def test_whose_place_a_silent_one_has_gets_it_from_a_real_hub(monkeypatch):
    """Its connection stands, as that of a machine that was switched off does for a while."""
    for name, seconds in (("HELD_S", 1.0), ("UNHEARD_S", 0.2)):
        monkeypatch.setattr(slots, name, seconds)
    monkeypatch.setattr(refusals, "PAUSE_S", 0.1)
    monkeypatch.setattr(refusals, "time", time)
    plan = hub_plan(replicas=2, joinable=1, config="seed: 0", supervised=False, start_timeout_s=600.0)
    hub = HubServer(plan, RunKeys.generate(), lambda told: None)
    keys = hub.start("127.0.0.1", 0)
    try:
        with Observer(keys) as silent, Observer(keys) as other:
            assert Claim(silent, "a").ask().replica == 1
            assert Claim(other, "b").ask_first(False, lambda why: None).replica == 1
    finally:
        hub.stop()


def test_a_place_is_asked_for_again_while_this_machine_gets_ready(monkeypatch):
    """Now and then, whatever the hub answers: a machine that prepares for a minute keeps its place."""
    now_s, sent, answers = 0.0, [], [SLOT, SLOT]
    hub = SimpleNamespace(send=sent.append, receive=lambda timeout_s: answers.pop() if answers else None)
    monkeypatch.setattr(claiming, "time", SimpleNamespace(monotonic=lambda: now_s))
    claim = Claim(hub, "ticket")
    for tenth in range(601):
        now_s = tenth / 10
        claim.hold()
    assert [each.ticket for each in sent] == ["ticket"] * 13
    assert not answers


def test_what_must_go_on_goes_on_while_a_process_prepares(tmp_path, monkeypatch):
    turns: list[bool] = []
    monkeypatch.setattr(preparing, "complete", lambda command, timeout_s, stopped: (int(stopped()), ""))
    apart(RunPaths(tmp_path), Onlooker(meanwhile=lambda: turns.append(True)))
    assert turns == [True]


@pytest.mark.parametrize("reason", [ENDED, NONE_MISSING, BUSY])
def test_nobody_waits_for_what_does_not_change(reason):
    with pytest.raises(LaunchError, match=reason):
        Claim(Hub(refused(reason), SLOT), "ticket").ask_first(True, print)
