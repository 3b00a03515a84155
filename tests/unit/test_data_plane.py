"""`topology.data_plane`: what `auto` takes, what cannot be, what the plan says, what a hub gives those who join."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.exchange.support import SIZE, body, delta, mean_of, part, together
from tests.support import await_true, free_port
from tsugi_cli.config.compose import compose, config_hash, resolved_yaml
from tsugi_cli.config.data_plane import data_plane
from tsugi_cli.finetune.exchange import exchange_client
from tsugi_cli.launch import hub as launched_hub
from tsugi_cli.launch.estimate import _payload
from tsugi_cli.launch.guest import check_slot
from tsugi_cli.launch.hub import Serving, free_pair, serve
from tsugi_cli.launch.join import settle, take
from tsugi_cli.launch.plan import make_plan
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.hub.tickets import Tickets
from tsugi_kpool.core.messages import Slot, SlotRequest
from tsugi_kpool.errors import ConfigError, LaunchError, MachineError
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband import token
from tsugi_kpool.sideband.addresses import split
from tsugi_kpool.sideband.keys import Role
from tsugi_kpool.sideband.observer import Observer

OPEN = ("model=tiny", "topology.replicas=3", "topology.here=1", "sideband.bind=10.0.0.5")


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        (("model=tiny",), "group"),
        (("model=tiny", "topology.here=1"), "group"),
        (("model=tiny", "topology.spare=2", "sideband.bind=0.0.0.0"), "exchange"),
        (OPEN, "exchange"),
        ((*OPEN, "topology.trust_network=true"), "group"),
        ((*OPEN, "topology.trust_network=true", "topology.data_plane=exchange"), "exchange"),
        ((*OPEN, "topology.trust_network=true", "kpool.mode=gradient"), "group"),
        ((*OPEN, "topology.trust_network=true", "sideband.insecure=true"), "group"),
        (("model=tiny", "topology.data_plane=exchange"), "exchange"),
    ],
)
def test_auto_takes_the_exchange_where_others_join_and_nobody_trusts_the_network(
    words: tuple[str, ...], taken: str
) -> None:
    assert data_plane(compose(words)) == taken


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("topology.data_plane=exchange", "kpool.mode=gradient"), "exchange needs kpool.mode=local, found gradient"),
        (("topology.data_plane=exchange", "sideband.insecure=true"), "exchange needs keys"),
        (("topology.data_plane=exchange", "kpool.reduce=scatter"), "kpool.reduce=scatter has replicas sum"),
        ((*OPEN, "kpool.reduce=scatter"), "kpool.reduce=scatter has replicas sum"),
        (("topology.data_plane=group",), "or take topology.data_plane=exchange, where they listen nowhere"),
        (("kpool.mode=gradient",), "topology.trust_network must be true"),
        (("topology.data_plane=exchnge",), "did you mean exchange"),
    ],
)
def test_what_cannot_be_is_said_by_name(words: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError) as found:
        compose([*OPEN, *words])
    assert says in "\n".join(found.value.problems)


def test_the_plan_names_both_ports_and_what_passes_the_hubs_link() -> None:
    spec = compose([*OPEN, "sideband.port=51820"])
    facts = make_plan(spec, RunPaths(Path("/runs/x")), n_train=100).facts
    assert "exchange at 10.0.0.5, TLS 1.3" in facts["data plane"]
    assert "51820 (hub) and 51821 (exchange)" in facts["data plane"]
    assert "out of it for 2 that join" in _payload(spec, 1e6)
    assert not make_plan(spec, RunPaths(Path("/runs/x")), n_train=100).hub.sealed


def test_the_plan_says_what_a_round_takes_behind_a_slow_link_and_what_fewer_bits_make_of_it() -> None:
    """Two that join: three payloads of 8 Mbit in turn."""
    assert "20 Mbit/s here a round every 1.4 s; kpool.payload=int4: 0.8 s" in _payload(compose([*OPEN]), 1e6)
    coarse = _payload(compose([*OPEN, "kpool.payload=int4"]), 1e6)
    assert "20 Mbit/s here a round every 1.4 s" in coarse
    assert "kpool.payload" not in coarse


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[RunPaths, Serving]]:
    """A hub with an exchange, on loopback."""
    spec = compose(["model=tiny", "topology.here=1", "topology.data_plane=exchange", f"runs_dir={tmp_path}/there"])
    paths = RunPaths(tmp_path / "run")
    paths.keys.parent.mkdir(parents=True)
    paths.config.write_text(resolved_yaml(spec))
    paths.config_hash.write_text(config_hash(spec))
    serving = serve(spec, paths, make_plan(spec, paths, n_train=100).hub, lambda _: None)
    yield paths, serving
    serving.stop()


@pytest.mark.timeout(200)
def test_a_joiner_gets_from_its_token_all_that_it_needs_to_reach_the_exchange(
    served: tuple[RunPaths, Serving], tmp_path: Path
) -> None:
    paths, _ = served
    own = sideband_keys.load(paths.keys)
    keys, _ = token.read(token.write(own, Role.MEMBER, addressed=True))
    spec = compose(["model=tiny", "topology.here=1", "topology.data_plane=exchange", f"runs_dir={tmp_path}/there"])
    with Observer(keys) as hub:
        slot = hub.ask(SlotRequest("a ticket"), Slot, 60.0)
    check_slot(slot, "a ticket", spec)
    with pytest.raises(LaunchError, match="exchange's certificate"):
        check_slot(msgspec.structs.replace(slot, exchange="pem"), "a ticket", spec)
    joined = settle(spec, sideband_keys.replace(keys, exchange=slot.exchange))
    assert take(slot, slot, "a ticket", spec, joined) == 1
    clients = [exchange_client(spec, paths, 0), exchange_client(spec, joined, 1)]
    assert all(clients)
    ordered = Tickets(paths.root.name, own.hub_secret).of_round(1, 1, 0, (0, 2), (0, 1), 0)
    said = part(1, (0, 1), ticket=ordered)
    results = together(*(lambda r=r: clients[r].reduce(said, body(delta(r))) for r in (0, 1)))
    assert mean_of(said, results[0]).shape == (2, SIZE)
    np.testing.assert_array_equal(mean_of(said, results[0]), mean_of(said, results[1]))
    assert sideband_keys.load(joined.keys).hub_secret == ""
    for client in clients:
        client.close()


def test_a_free_pair_is_none_that_the_system_hands_out_before_the_exchange_listens() -> None:
    """Whoever connects anywhere gets a port from the system: it must not be the exchange's, a second before it is."""
    handed_out = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not handed_out.exists() or (lowest := int(handed_out.read_text().split()[0])) < 32_768:
        pytest.skip("this system does not say what it hands out, or hands out more than others do")
    assert all(free_pair(host) + 1 < lowest for host in ("127.0.0.1", "0.0.0.0") for _ in range(20))


def test_a_pair_is_sought_where_both_ports_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        port = free_port()
        taken.bind(("127.0.0.1", port))
        for pairs in (range(port, port + 1), range(port - 1, port)):
            monkeypatch.setattr(launched_hub, "PAIRS", pairs)
            monkeypatch.setattr(launched_hub, "PAIRS_TRIED", 1)
            with pytest.raises(MachineError, match=r"no two neighbouring ports .*sideband\.port=51820"):
                free_pair("127.0.0.1")


@pytest.mark.timeout(200)
def test_strangers_at_the_exchange_are_counted_with_the_hubs(served: tuple[RunPaths, Serving]) -> None:
    paths, serving = served
    _, port = split(sideband_keys.load(paths.keys).address or "")
    with socket.create_connection(("127.0.0.1", port + 1)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    await_true(lambda: serving.hub.status().refused.get("handshake") == 1, "a refusal in the status")
