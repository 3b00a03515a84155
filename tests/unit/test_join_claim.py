"""How `tsugi join` asks for its place: the exit code says why there is none, and `--wait` waits for what changes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tsugi_cli.launch import refusals
from tsugi_cli.launch.claim import Claim
from tsugi_kpool.core.hub.slots import BUSY, ENDED, NONE_MISSING, TOO_EARLY
from tsugi_kpool.core.messages import Slot
from tsugi_kpool.errors import ExitCode, LaunchError, SidebandError, TsugiError
from tsugi_kpool.sideband.observer import REFUSED

SLOT = Slot("ticket", 1, "run", "seed: 0", "c0ffee")
NOBODY = SidebandError("no hub answers at tcp://h:1: nobody listens there (connection refused)")


def refused(reason: str) -> LaunchError:
    return LaunchError(f"the hub at tcp://h:1 {REFUSED}{reason}")


class Hub:
    """Answers one thing after the other."""

    def __init__(self, *answers: Slot | TsugiError) -> None:
        self._answers = list(answers)

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


@pytest.mark.parametrize("reason", [ENDED, NONE_MISSING, BUSY])
def test_nobody_waits_for_what_does_not_change(reason):
    with pytest.raises(LaunchError, match=reason):
        Claim(Hub(refused(reason), SLOT), "ticket").ask_first(True, print)
