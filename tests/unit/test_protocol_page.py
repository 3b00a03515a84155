"""docs/protocol.md is enough to write a client from: its tables are the classes', its client talks to a real hub."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import zmq

from tests.support import hub_plan
from tsugi_kpool.core.messages import BadFrame, decode
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import Role, RunKeys

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (\w+)\n\n(.*?)(?=^### |^<!-- end)", PAGE, re.MULTILINE | re.DOTALL))
MESSAGES = re.findall(r"^\| \[(\w+)\]\(#\w+\) \| ", PAGE, re.MULTILINE)


def test_tables_are_those_of_the_classes():
    result = subprocess.run(
        [sys.executable, "docs/protocol_tables.py"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


# --- the tables -------------------------------------------------------------------------------------------


def rows(name: str) -> list[tuple[str, str, str]]:
    """(key, type, default) of every field, as somebody reads them who has nothing but the page."""
    found = re.findall(r"^\| (`?\w+`?) \| \w+ \| (.*?) \| (.*?) \| ", SECTIONS[name], re.MULTILINE)
    return [
        (key.strip("`"), kind, default.strip()) for key, kind, default in found if kind != "type" and key != "key"
    ]


def example(kind: str) -> object:
    """A value of a type that the page names."""
    plain = {"int": 3, "float": 0.5, "text": "t", "bytes": b"b", "bool": True, "nil": None}
    kind = kind.split(" or ")[0]
    if kind in plain:
        return plain[kind]
    if link := re.fullmatch(r"\[(\w+)\]\(#\w+\)", kind):
        inner = [(key, example(each)) for key, each, _ in rows(link[1])]
        return [value for _, value in inner] if inner[0][0] == "0" else dict(inner)
    if each := re.fullmatch(r"array of (.*)", kind):
        return [example(each[1])]
    if several := re.fullmatch(r"array \((.*)\)", kind):
        return [example(each) for each in several[1].split(", ")]
    pair = re.fullmatch(r"map of (\w+) to (\w+)", kind)
    assert pair, kind
    return {example(pair[1]): example(pair[2])}


def frame(name: str, fields: dict[str, object]) -> bytes:
    said = re.search(r"In a frame its `type` is `(\w+)`\.", SECTIONS[name])
    return b"\x01" + msgspec.msgpack.encode({**fields, "type": said[1] if said else name})


def test_the_page_has_every_message():
    assert len(MESSAGES) == len(set(MESSAGES)) >= 31
    assert set(MESSAGES) < set(SECTIONS)


@pytest.mark.parametrize("name", MESSAGES)
def test_a_frame_made_from_the_page_is_read(name):
    """With all fields, and with only those that have no default; without one of these it is none."""
    table = rows(name)
    whole = {key: example(kind) for key, kind, _ in table}
    assert type(decode(frame(name, whole))).__name__ == name
    needed = {key: example(kind) for key, kind, default in table if not default}
    decode(frame(name, needed))
    for key in needed:
        with pytest.raises(BadFrame):
            decode(frame(name, {other: value for other, value in needed.items() if other != key}))
    with pytest.raises(BadFrame):
        decode(frame(name, {**whole, "unknown": 1}))


# --- the client -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client():
    """The page's own program, as it stands there: no class or key of ours."""
    (text,) = re.findall(r"<!-- client -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert "tsugi_" not in text
    names: dict[str, object] = {}
    exec(compile(text, "docs/protocol.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def hub():
    plan = hub_plan(joinable=1, config="name: test\n")
    server = HubServer(plan, RunKeys.generate(), lambda told: None)
    server.keys = server.start("127.0.0.1", 0)
    yield server
    server.stop()


@pytest.fixture
def context():
    with zmq.Context() as made:
        yield made


def connected(client, context, hub, role):
    return client["connect"](context, hub.keys.address, token.write(hub.keys, role))


@pytest.mark.parametrize("role", [Role.MEMBER, Role.OBSERVER])
def test_client_of_the_page_is_told_the_status(client, context, hub, role):
    with connected(client, context, hub, role) as socket:
        status = client["status"](socket)
    assert (status["run"], status["stage"], status["expected"], status["replicas"]) == ("test", "gathering", 2, [])
    assert set(status) <= {key for key, _, _ in rows("FleetStatus")} | {"type"}


def test_client_of_the_page_gets_a_place_and_the_same_again(client, context, hub):
    with connected(client, context, hub, Role.MEMBER) as socket:
        place = client["place"](socket, "a-ticket")
        assert place == client["place"](socket, "a-ticket")
        assert set(place) == {key for key, _, _ in rows("Slot")} | {"type"}
        assert (place["replica"], place["config"], place["config_hash"]) == (1, "name: test\n", "c0ffee")
        assert client["place"](socket, "another")["type"] == "Refused"


def test_client_of_the_page_notices_a_mistyped_token(client, hub):
    text = token.write(hub.keys, Role.MEMBER)
    with pytest.raises(ValueError, match="mistyped"):
        client["keys"](text[:20] + ("A" if text[20] != "A" else "B") + text[21:])
