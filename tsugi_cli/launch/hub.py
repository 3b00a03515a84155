"""The hub of a run: from settings to socket, and the address at which other machines reach it. `serve` makes it."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tsugi_cli.config.data_plane import EXCHANGE, data_plane
from tsugi_cli.config.spec import RunSpec
from tsugi_cli.data import shipped
from tsugi_cli.data.cache import file_digest
from tsugi_cli.data.facts import Facts
from tsugi_cli.record.metrics import Metrics
from tsugi_cli.record.resumed import resumed_of
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.checkpoints import Store
from tsugi_kpool.core.checkpoint import ANCHORS, MANIFEST
from tsugi_kpool.core.effects import HubPlan, Told
from tsugi_kpool.core.events import Note
from tsugi_kpool.core.hub.slot_requests import wants_adapter
from tsugi_kpool.core.messages import AdapterOffer, CheckpointOffer
from tsugi_kpool.core.rounds.closing import quorum_of
from tsugi_kpool.errors import MachineError
from tsugi_kpool.exchange.certificates import server_credentials
from tsugi_kpool.exchange.process import Orders
from tsugi_kpool.sideband import addresses, token
from tsugi_kpool.sideband import keys as sideband_keys
from tsugi_kpool.sideband.hub.dispatcher import Offered
from tsugi_kpool.sideband.hub.server import HubServer
from tsugi_kpool.sideband.keys import Role, RunKeys

from .arrivals import Arrivals
from .collecting import Collecting
from .exchange_process import ExchangeProcess
from .taking_over import RESUMED, resumed_files

ELSEWHERE = ("192.0.2.1", "2001:db8::1")
"""Addresses that nobody has (RFC 5737, RFC 3849). The route to them is the route to others; nothing is sent."""
PAIRS_TRIED = 50
PAIRS = range(20_000, 32_000)
"""Ports that systems hand out to nobody by themselves (Linux: from 32768 on, macOS and Windows: from 49152 on). Of
those that they do, any connection of any program could have the exchange's before it listens."""
HIGHEST_PORT = 65535
NO_SECRETS = (
    "sideband.insecure=true: no key is asked for and nothing is encrypted. "
    "Whoever reaches the hub's port can change or end this run"
)


@dataclass(frozen=True)
class Serving:
    """What serves a run: its hub, what brings adapter and checkpoints here, and the exchange where there is one."""

    hub: HubServer
    collecting: Collecting
    arrivals: Arrivals
    exchange: ExchangeProcess | None

    def stop(self) -> None:
        """End all. Members have ended before."""
        self.collecting.stop()
        self.arrivals.stop()
        if self.exchange is not None:
            self.exchange.stop()
        self.hub.stop()


def serve(
    spec: RunSpec, paths: RunPaths, plan: HubPlan, tell: Callable[[Told], None], known: RunKeys | None = None
) -> Serving:
    """Start the hub of a run and its exchange, and write the hub's address into the run's key file.

    Args:
        spec: The run.
        paths: Its directory.
        plan: What the hub must know of it.
        tell: Called in the hub's thread with all that it tells its owner; must not raise.
        known: Keys that others have already; None: the run's own, or new ones.

    Raises:
        MachineError: this address cannot be listened at, other machines have no way to it, or the run's key file
            cannot be written.
        SidebandError: the key file that is to be used cannot be.
    """
    keys = own_keys(spec, paths) if known is None or paths.keys.exists() else known
    host, port = reached_at(spec), _port(spec, keys)
    keys = replace(keys, exchange="")  # a key file may be that of a run which had one
    if data_plane(spec) == EXCHANGE:
        keys = replace(keys, exchange=server_credentials(keys.hub_secret).certificate)
        port = port or free_pair(spec.sideband.bind)
    data, resumed = given(spec, paths)
    plan = replace(plan, exchange=keys.exchange, resumed=resumed)
    hub = HubServer(plan, keys, tell, paths.journal, data=data)
    collecting = Collecting(paths.adapter, lambda: bool(hub.ask(wants_adapter)), hub.deliver)
    arrivals = Arrivals(Store(paths.checkpoints), lambda ticket: hub.ask(lambda it: it.slots.of(ticket)), hub.deliver)
    hub.take = partial(pass_on, collecting, arrivals)
    started = hub.start(spec.sideband.bind, port, insecure=spec.sideband.insecure)
    if spec.sideband.insecure:
        tell(Note(NO_SECRETS))
    port = addresses.split(started.address or "")[1]
    if keys.exchange and port >= HIGHEST_PORT:
        hub.stop()
        raise MachineError(f"sideband.port={port} leaves none above it for the exchange: name a lower one")
    collecting.start()
    arrivals.start()
    exchange = _exchange(spec, paths, keys, port, hub, tell) if keys.exchange else None
    serving = Serving(hub, collecting, arrivals, exchange)
    try:
        if serving.exchange is not None:
            serving.exchange.start()
        sideband_keys.save(replace(started, address=addresses.joined(host, port)), paths.keys)
    except OSError as error:
        serving.stop()
        raise MachineError(f"cannot write {paths.keys}: {error.strerror}") from error
    except MachineError:
        serving.stop()
        raise
    return serving


def pass_on(collecting: Collecting, arrivals: Arrivals, route: bytes, message: Offered) -> None:
    """Pass on what a machine offers, or a part of it: names of a checkpoint's files have a slash."""
    if isinstance(message, AdapterOffer):
        collecting.take(route, message)
    elif isinstance(message, CheckpointOffer) or "/" in message.file:
        arrivals.take(route, message)
    else:
        collecting.take(route, message)


def _exchange(
    spec: RunSpec, paths: RunPaths, keys: RunKeys, port: int, hub: HubServer, tell: Callable[[Told], None]
) -> ExchangeProcess:
    """Return the run's exchange, which listens one port above the hub."""
    seats = spec.topology.replicas + spec.topology.spare
    secrets, pool = (keys.hub_secret, keys.member_secret), spec.kpool
    run = (paths.root.name, _begin(paths))
    orders = Orders(str(paths.exchange), seats, *secrets, pool.n, *run, quorum_of(pool))
    return ExchangeProcess(
        spec.sideband.bind, port + 1, orders, lambda text: tell(Note(text)), hub.refused, hub.give_up
    )


def _begin(paths: RunPaths) -> str:
    """Return the anchors' file of the checkpoint that a run goes on from; empty when it begins, or has gone on."""
    resumed = resumed_of(paths)
    path = paths.checkpoints / resumed.checkpoint / ANCHORS if resumed is not None else None
    return str(path) if path is not None and path.exists() else ""


def free_pair(bind: str) -> int:
    """Return a free port of this address, one of `PAIRS`, whose neighbour above is free, too.

    Raises:
        MachineError: there is none.
    """
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    for port in random.sample(PAIRS, PAIRS_TRIED):
        with ExitStack() as held, suppress(OSError):
            for each in (port, port + 1):
                held.enter_context(socket.socket(family)).bind((bind, each))
            return port
    raise MachineError(f"no two neighbouring ports of {bind} are free: name the first one, sideband.port=51820")


def given(spec: RunSpec, paths: RunPaths) -> tuple[tuple[bytes, dict[str, Path]] | None, str]:
    """Return what machines that join are given, and the hash of what says which checkpoint the run goes on from.

    The first is the listing of the prepared data, empty where they have gone, and all files. None: nobody joins.
    """
    if not spec.topology.spreads:
        return None, ""
    listing, files = _prepared(paths)
    resumed = resumed_files(paths)
    digest = file_digest(resumed[RESUMED + MANIFEST]) if resumed else ""
    return (listing, files | resumed), digest


def _prepared(paths: RunPaths) -> tuple[bytes, dict[str, Path]]:
    try:
        entry = Path(Facts.parse(paths.prepared.read_bytes()).entry)
        listing = shipped.listing_of(entry)
    except (OSError, ValueError, KeyError):
        return b"", {}
    return listing, {name: entry / name for name in shipped.read_listing(listing)}


def measured(spec: RunSpec, tell: Callable[[Told], None]) -> Metrics | None:
    """Return the sink that Prometheus reads, if it is asked for.

    Raises:
        MachineError: the package for it is missing, or its port is taken.
    """
    side = spec.sideband
    if side.metrics_port is None:
        return None
    metrics = Metrics(side.metrics_bind, side.metrics_port)
    where = addresses.joined(side.metrics_bind, metrics.port).removeprefix(addresses.TCP)
    tell(Note(f"metrics at http://{where}/metrics"))
    return metrics


def own_keys(spec: RunSpec, paths: RunPaths) -> RunKeys:
    """Return the run's keys: those of its directory if it is served again, the user's, or new ones.

    Raises:
        SidebandError: the file cannot be used.
    """
    if spec.sideband.insecure:
        return RunKeys.none()
    if paths.keys.exists():
        return sideband_keys.load(paths.keys).owned()
    path = spec.sideband.keys
    if path is None:
        return RunKeys.generate()
    return sideband_keys.load(Path(path).expanduser().resolve()).owned()


def reached_at(spec: RunSpec) -> str:
    """Return this machine's address as the others reach it.

    Raises:
        MachineError: it cannot be told, or this machine does not know the name that it is given.
    """
    if spec.topology.address is not None:
        return _known(spec.topology.address) if spec.topology.here != 0 else spec.topology.address
    if spec.sideband.bind not in addresses.WILDCARDS:
        return spec.sideband.bind
    for elsewhere in ELSEWHERE if ":" in spec.sideband.bind else ELSEWHERE[:1]:
        with suppress(MachineError):
            return addresses.own_address(elsewhere)
    raise MachineError("this machine has no default route: name its address, topology.address=...")


def _known(address: str) -> str:
    try:
        addresses.number_of(address)
    except OSError as error:
        raise MachineError(
            f"topology.address={address}: this machine does not know that name ({error.strerror}), and its own "
            f"replicas need it: name a number, and sideband.reached_at=[{address}] for the other machines"
        ) from error
    return address


def further_addresses(spec: RunSpec, keys: RunKeys) -> list[str]:
    """Return what `sideband.reached_at` says, as tcp://host:port."""
    port = addresses.split(keys.address or "")[1]
    found = [addresses.hub_address(each, port) for each in spec.sideband.reached_at]
    return [each for each in found if each is not None]


def invitation(paths: RunPaths, secret_shown: bool, spec: RunSpec) -> str:
    """Return what to type on another machine. The token is left out where the text may be stored, such as in a
    log."""
    keys = sideband_keys.load(paths.keys)
    if not keys.curve:
        return f"on another machine: tsugi join {keys.address} --insecure"
    prints = f"(tsugi sideband token --role member --run {paths.root} prints it)"
    shown = token.write(keys, Role.MEMBER, True, further_addresses(spec, keys)) if secret_shown else f"TOKEN {prints}"
    machine = "on this machine (sideband.bind=0.0.0.0 lets others in)" if _loopback(keys) else "on another machine"
    return f"{machine}, hub at {keys.address}:\ntsugi join {shown}"


def _loopback(keys: RunKeys) -> bool:
    return addresses.is_loopback(addresses.split(keys.address or "")[0])


def _port(spec: RunSpec, keys: RunKeys) -> int:
    """Return the configured port. A run that is served again keeps its port, because its replicas look for the hub
    there."""
    return spec.sideband.port or (addresses.split(keys.address)[1] if keys.address else 0)
