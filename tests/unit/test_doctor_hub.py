"""`tsugi doctor --hub`: what keeps a machine from a run is told, with what to do, and the question takes no place."""

from __future__ import annotations

import json
import socket
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from tests import pictures
from tests.exchange.support import MEMBERS, running
from tests.support import hub_plan
from tests.unit.test_doctor import GOOD
from tests.unit.test_slot_requests import ask, hello, make_hub
from tsugi_cli.app import app
from tsugi_cli.launch import doctor, reach
from tsugi_cli.launch.reach import exchange_silent, judge
from tsugi_kpool.about import about
from tsugi_kpool.core.hub.slots import ENDED, NONE_MISSING, TOO_EARLY
from tsugi_kpool.core.hub.status import status_for_askers
from tsugi_kpool.errors import ExitCode
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import Role, RunKeys

ADDRESS = "tcp://10.0.0.5:51820"
OURS = {**about(), "tsugi": "0.1.0", "torch": "2.13.0"}


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.setattr(doctor, "gather", lambda: GOOD)
    monkeypatch.delenv("TSUGI_TOKEN_FILE", raising=False)


@pytest.fixture
def hub():
    """A hub with two replicas that come from elsewhere."""
    server = HubServer(hub_plan(joinable=2, min_replicas=1, about=about()), RunKeys.generate(), lambda told: None)
    server.keys = server.start("127.0.0.1", 0)
    yield server
    server.stop()


@pytest.fixture
def nobody() -> str:
    """host:port where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def quickly_given_up(monkeypatch):
    """Returns what makes one address cost 0.3 s, which does not answer; an answer of another may take its time."""
    ask = reach.ask_status

    def given_up(address: str) -> None:
        monkeypatch.setattr(
            reach, "ask_status", lambda keys, timeout_s: ask(keys, 0.3 if keys.address == address else 60.0)
        )

    return given_up


def told(*arguments: str, typed: str = "") -> tuple[int, list[dict]]:
    """Exit code, and the lines about the hub."""
    result = CliRunner().invoke(app, ["doctor", "--json", *arguments], input=typed)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    names = ("hub", "versions", "exchange", "data plane", "place")
    return result.exit_code, [each for each in found if each["what"].startswith(names)]


def status(**changes):
    fields = {"about": OURS, "exchange": True, **changes}
    return pictures.fleet(**fields)


def test_a_machine_that_could_join_is_told_so_and_takes_no_place(hub, quickly_given_up):
    quickly_given_up("")
    text = token.write(hub.keys, Role.MEMBER, addressed=True)
    code, found = told("--hub", "-", typed=f"{text}\n")
    assert code == 0, found
    assert [each["verdict"] for each in found] == ["ok", "ok", "note", "ok"]
    assert "0 of 2 replicas" in found[0]["found"]
    assert found[-1]["found"] == "one is free"
    assert hub.status().refused == {}
    assert hub.ask(lambda state: state.slots.free(set(), 0.0, 2)) == 0


def test_an_address_that_does_not_answer_costs_nothing_when_the_next_one_does(hub, nobody, quickly_given_up):
    quickly_given_up(f"tcp://{nobody}")
    keys = replace(hub.keys, address=f"tcp://{nobody}")
    text = token.write(keys, Role.MEMBER, addressed=True, others=[hub.keys.address])
    code, found = told("--hub", text)
    assert code == 0, found
    assert (found[0]["what"], found[0]["verdict"]) == (f"hub {nobody}", "note")
    assert "nobody listens" in found[0]["found"]


@pytest.mark.parametrize("form", ["tcp://{}", "{}"])
def test_where_nobody_listens_the_way_out_is_named(nobody, form):
    code, (found,) = told("--hub", form.format(nobody))
    assert code == ExitCode.UNREACHABLE
    assert found["verdict"] == "problem"
    assert "sideband.bind=0.0.0.0" in found["advice"], "the address is this machine's own"


def test_another_runs_token_is_told_from_a_closed_port(hub, quickly_given_up):
    quickly_given_up(hub.keys.address)
    other = replace(RunKeys.generate(), address=hub.keys.address)
    code, (found,) = told("--hub", token.write(other, Role.MEMBER, addressed=True))
    assert code == ExitCode.UNREACHABLE
    assert "does not answer" in found["found"]
    assert "every run has its own token" in found["advice"]


def test_without_a_token_only_the_port_is_tried(hub):
    code, (found,) = told("--hub", hub.keys.address)
    assert (code, found["verdict"]) == (0, "note")
    assert "only a token tells" in found["advice"]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--hub", "nonsense"], "expected the hub's address"),
        (["--hub", "tsugi2-x"], "token"),
        (["--insecure"], "--hub"),
    ],
)
def test_what_is_no_hub_is_refused(typed, words):
    result = CliRunner().invoke(app, ["doctor", *typed])
    assert words in str(result.exception or result.output)


def test_an_observers_token_may_not_join(hub):
    result = CliRunner().invoke(app, ["doctor", "--hub", token.write(hub.keys, Role.OBSERVER, addressed=True)])
    assert "observer's" in str(result.exception or result.output)


@pytest.mark.parametrize(
    ("changes", "unreached", "code", "what", "words"),
    [
        ({}, "", ExitCode.OK, "", ""),
        ({"no_place": f"{TOO_EARLY}: 0 of 2 have joined"}, "", ExitCode.TOO_EARLY, "place", "--wait"),
        ({"no_place": ENDED}, "", ExitCode.OVER, "place", "resume=last"),
        ({"no_place": f"{NONE_MISSING}: 2 of 2"}, "", ExitCode.FULL, "place", "topology.replicas"),
        ({"no_place": "this run starts all its replicas itself"}, "", ExitCode.LAUNCH, "place", "topology.here"),
        ({"about": {**OURS, "tsugi": "0.2.0"}}, "", ExitCode.LAUNCH, "versions", "tsugi 0.1.0, the hub 0.2.0"),
        ({"about": {**OURS, "torch": "2.12.0"}}, "", ExitCode.OK, "versions", "torch 2.13.0, the hub 2.12.0"),
        ({"about": {}}, "", ExitCode.OK, "versions", "does not name its own"),
        ({}, "no answer at all", ExitCode.UNREACHABLE, "exchange 10.0.0.5:51821", "open TCP 51821"),
        ({"exchange": False}, "", ExitCode.OK, "data plane", "other machines must reach this one"),
    ],
)
def test_each_answer_of_a_hub_is_told_with_what_to_do(changes, unreached, code, what, words):
    found = judge(status(**changes), OURS, ADDRESS, unreached)
    assert found.exit_code == code
    told = [each for each in found.findings if each.verdict != "ok"]
    assert [each.what for each in told] == ([what] if what else [])
    if what:
        assert words in f"{told[0].found} {told[0].advice}"
        assert told[0].advice
        assert (told[0].verdict == "problem") == bool(code)


def test_an_exchange_is_reached_without_being_counted_as_a_stranger(tmp_path):
    with running(tmp_path) as made:
        keys = RunKeys("", "", "", MEMBERS, f"tcp://127.0.0.1:{made.port - 1}")
        assert exchange_silent(keys) == ""
        assert not made.exchange.refused
    assert exchange_silent(keys) == "nobody listens there"


def test_a_hub_tells_who_asks_whether_there_is_a_place():
    hub = make_hub(1)
    hub.slots.exchange, hub.slots.about = "certificate", OURS
    free = status_for_askers(hub, 0.0)
    assert (free.no_place, free.exchange, free.about) == ("", True, OURS)
    ask(hub, "a")
    hub.receive(hello(2, "i"), 1.0)
    assert status_for_askers(hub, 1.0).no_place.startswith(NONE_MISSING)
