"""Addresses: IPv4, IPv6 and names mean the same in tokens, key files and settings; several are tried in turn."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.support import hub_plan
from tsugi_cli.config.compose import compose
from tsugi_cli.launch.hub import further_addresses, reached_at
from tsugi_cli.launch.invitation import Invitation
from tsugi_kpool.errors import ConfigError, ExitCode, MachineError, SidebandError
from tsugi_kpool.sideband import addresses, keys, token
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import Role, RunKeys
from tsugi_kpool.sideband.observer import answering, ask_status

HOSTS = ("10.0.0.5", "node-0", "a.example.org", "fd00::5", "::1")


@pytest.fixture(scope="module")
def hub():
    """A hub that listens on IPv6 alone."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    server = HubServer(hub_plan(), RunKeys.generate(), lambda told: None)
    yield server.start("::1", 0)
    server.stop()


@pytest.mark.parametrize("host", HOSTS)
def test_an_address_survives_token_key_file_and_being_taken_apart(host, tmp_path):
    address = addresses.joined(host, 51820)
    assert addresses.split(address) == (host, 51820)
    own = replace(RunKeys.generate(), address=address)
    assert token.read(token.write(own, Role.MEMBER, addressed=True))[0].address == address
    keys.save(own, tmp_path / "keys.json")
    assert keys.load(tmp_path / "keys.json") == own
    assert compose(["model=tiny", f"topology.address={host}"]).topology.address == host


@pytest.mark.parametrize(
    "text", ["tcp://fd00::5:51820", "tcp://[zz]:1", "tcp://[1:2]:1", "tcp://a:70000", "tcp://a b:1"]
)
def test_what_is_no_address_is_refused_with_examples(text):
    with pytest.raises(ConfigError, match=r"such as .*tcp://\[fd00::5\]:51820"):
        token.check_address(text)


def test_a_hub_on_ipv6_answers_to_its_token(hub):
    assert addresses.is_loopback(addresses.split(hub.address)[0])
    read, _ = token.read(token.write(hub, Role.MEMBER, addressed=True))
    assert ask_status(read, 10.0).run == "test"


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nobody listens, and nobody else can."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield addresses.joined("127.0.0.1", taken.getsockname()[1])


def test_the_first_address_at_which_the_hub_answers_is_taken(hub, nobody):
    text = token.write(replace(hub, address=nobody), Role.MEMBER, True, [nobody, hub.address])
    invited = Invitation.read(text, None, False, io.StringIO())
    assert invited.addresses == (nobody, hub.address)
    assert answering(invited.keys, invited.addresses, 10.0).address == hub.address
    with pytest.raises(SidebandError, match="nobody listens there") as found:
        Invitation(invited.keys, (nobody, nobody)).reached(False, print)
    assert found.value.exit_code == ExitCode.UNREACHABLE


def test_a_name_that_the_hubs_own_machine_does_not_know_is_refused_where_replicas_are_on_it(monkeypatch):
    def nobody_knows(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nobody_knows)
    words = ["model=tiny", "topology.trust_network=true", "topology.replicas=2", "topology.address=hub.example"]
    with pytest.raises(MachineError) as found:
        reached_at(compose([*words, "topology.here=1"]))
    assert str(found.value) == (
        "topology.address=hub.example: this machine does not know that name (Name or service not known), and its own "
        "replicas need it: name a number, and sideband.reached_at=[hub.example] for the other machines"
    )
    assert reached_at(compose([*words, "topology.here=0"])) == "hub.example", "only others need it"


def test_a_routers_address_stands_in_the_token_behind_the_hubs_own():
    words = ["model=tiny", "topology.here=1", "topology.trust_network=true", "sideband.bind=10.0.0.5"]
    spec = compose([*words, "sideband.reached_at=[home.example.org:7000,fd00::7]"])
    own = replace(RunKeys.generate(), address=addresses.joined(reached_at(spec), 51820))
    assert further_addresses(spec, own) == ["tcp://home.example.org:7000", "tcp://[fd00::7]:51820"]
