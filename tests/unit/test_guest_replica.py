"""`tsugi join` looks after its replica: a death is told, and another process started while the fleet trains."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from tests.support import hub_plan
from tsugi_cli.console.plain import PlainConsole
from tsugi_cli.launch import guest_replica as looked_after
from tsugi_cli.launch.failure import Failure
from tsugi_cli.launch.guest_replica import GuestReplica
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.status import fleet_status
from tsugi_kpool.core.messages import Fell, FleetStatus, SlotRequest, StopRequest

TRAINING = msgspec.structs.replace(fleet_status(Hub(hub_plan(), 0.0), 0.0), stage="training")


class FakeHub:
    """Says how the fleet is, once for every look, and keeps what it was told."""

    def __init__(self, status: FleetStatus | None) -> None:
        self.status, self.told, self._owed = status, [], False

    def send(self, message) -> None:
        self.told.append(message)
        self._owed = True

    def receive(self, timeout_s: float):
        owed, self._owed = self._owed, False
        return self.status if owed else None


class FakeSupervisor:
    """A replica that falls as often as there are reasons, then ends well."""

    starting = False

    def __init__(self, *reasons: str) -> None:
        self._reasons, self._fell, self._new, self.starts = list(reasons), False, False, 1

    def turn(self) -> None:
        """Nothing waits for a fork server."""

    def running(self) -> list[int]:
        new, self._new = self._new, False
        return [0] if new else []

    def workers(self, replica: int) -> list[int]:
        return []

    def fallen(self) -> list[Failure]:
        fell = not self._fell and len(self._reasons) >= self.starts
        self._fell = self._fell or fell
        return [Failure(0, 1, self._reasons[self.starts - 1], Path("log"), raised=True)] if fell else []

    def restart(self, replica: int) -> None:
        self.starts, self._fell, self._new = self.starts + 1, False, True


class FakeProcessWatch:
    """Notices one death, at once."""

    def __init__(self) -> None:
        self._found = {7: "its worker was killed (SIGKILL)"}

    def killed(self) -> dict[int, str]:
        found, self._found = self._found, {}
        return found

    def watch(self, replica: int, pid: int) -> None: ...

    def wait(self, timeout_s: float) -> None:
        CLOCK.now_s += 1.0

    def close(self) -> None: ...


CLOCK = SimpleNamespace(now_s=100.0)


def watched(monkeypatch, status: FleetStatus | None, *reasons: str) -> tuple[FakeHub, FakeSupervisor]:
    monkeypatch.setattr(looked_after, "ProcessWatch", FakeProcessWatch)
    monkeypatch.setattr(looked_after, "time", SimpleNamespace(monotonic=lambda: CLOCK.now_s))
    settings = {"train": {"grace_s": 30.0}, "sideband": {"hub_timeout_s": 10.0}, "topology": {"max_restarts": 2}}
    spec = SimpleNamespace(**{name: SimpleNamespace(**values) for name, values in settings.items()})
    hub, supervisor, quiet = FakeHub(status), FakeSupervisor(*reasons), SimpleNamespace(count=0)
    member = GuestReplica(hub, "ticket", 0, supervisor, PlainConsole(io.StringIO()), quiet, spec, Path("nowhere"))
    if status is not None:
        hub.send(SlotRequest("ticket"))
        member._listen()
    member.watch()
    return hub, supervisor


FENCED = "tsugi_kpool.errors.FencedError: replica 0 has left this run"


@pytest.mark.parametrize(
    ("reasons", "starts"),
    [((FENCED,), 2), ((FENCED,) * 3, 3), (("ValueError: mine",), 1), ((), 1)],
    ids=["cut off", "too often", "its own error", "ended well"],
)
def test_a_replica_is_started_again_unless_its_own_error_ended_it(monkeypatch, reasons, starts):
    hub, supervisor = watched(monkeypatch, TRAINING, *reasons)
    assert supervisor.starts == starts
    assert [each for each in hub.told if isinstance(each, Fell)] == [
        Fell("ticket", 7, FakeProcessWatch().killed()[7])
    ]


def test_it_is_not_started_again_for_a_hub_that_nobody_hears(monkeypatch):
    _, supervisor = watched(monkeypatch, None, FENCED)
    assert supervisor.starts == 1


class Loading(FakeSupervisor):
    """A replica that has not joined, and would go on loading for ever."""

    def running(self) -> list[int]:
        return [0]


def taken_back(monkeypatch, supervisor: FakeSupervisor) -> GuestReplica:
    """Its user has pressed Ctrl-C. Others have trained, so that there is something to commit; nothing of its own."""
    monkeypatch.setattr(looked_after, "ProcessWatch", FakeProcessWatch)
    monkeypatch.setattr(looked_after, "time", SimpleNamespace(monotonic=lambda: CLOCK.now_s))
    settings = {"train": {"grace_s": 1e9}, "sideband": {"hub_timeout_s": 10.0}, "topology": {"max_restarts": 2}}
    spec = SimpleNamespace(**{name: SimpleNamespace(**values) for name, values in settings.items()})
    hub = FakeHub(msgspec.structs.replace(TRAINING, tokens=1000))
    pressed = SimpleNamespace(count=1)
    member = GuestReplica(hub, "ticket", 0, supervisor, PlainConsole(io.StringIO()), pressed, spec, Path("nowhere"))
    member.watch()
    return member


def test_ctrl_c_while_it_loads_gives_the_place_back_and_waits_for_nobody(monkeypatch):
    member = taken_back(monkeypatch, Loading())
    hub = member._hub
    assert member.gave_up
    assert StopRequest("ticket") in hub.told
    assert not any(isinstance(each, SlotRequest) for each in hub.told), "it does not ask for it again"


@pytest.mark.parametrize(
    ("reason", "expected"), [("LaunchError: the hub refused this replica", True), ("KeyError: 1", False)]
)
def test_after_ctrl_c_a_refusal_is_no_failure(monkeypatch, reason, expected):
    """The place was given back while the replica came up: it is not let in any more."""

    class Refused(FakeSupervisor):
        """It falls at its second look; by then its user has been heard."""

        def fallen(self) -> list[Failure]:
            self.looks = getattr(self, "looks", 0) + 1
            return super().fallen() if self.looks > 1 else []

        def running(self) -> list[int]:
            return [0] if self.looks < 2 else []

    assert taken_back(monkeypatch, Refused(reason)).gave_up is expected
