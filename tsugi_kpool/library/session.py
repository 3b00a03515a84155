"""What runs beside a training loop that has peers: engine, link and hooks, and on replica 0 the hub."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from tsugi_kpool.core.effects import HubPlan
from tsugi_kpool.core.messages import Figures, FleetStatus, StopFleet, Totals
from tsugi_kpool.core.replica.orders import Limits
from tsugi_kpool.core.settings import KPool
from tsugi_kpool.engine.engine import KPoolEngine
from tsugi_kpool.engine.follower import Engine, Follower
from tsugi_kpool.engine.inside import ALONE, Inside
from tsugi_kpool.engine.network import Network
from tsugi_kpool.errors import ConfigError, SidebandError
from tsugi_kpool.machine import Probe
from tsugi_kpool.sideband.addresses import own_address
from tsugi_kpool.sideband.link import Identity, Link
from tsugi_kpool.sideband.observer import ask_status
from tsugi_kpool.world import World

from . import rendezvous
from .hooks import Hooks
from .own_hub import OwnHub
from .patience import Patience

START_TIMEOUT_S = 300.0
"""All replicas must have called plesio_init within this time: models load at different speeds."""
SILENT_TIMEOUT_S = 60.0
"""A hub or a replica that has not been heard for this long is taken for dead."""
BEAT_S = 0.5
PARTING_S = 10.0
"""How long the hub waits for the others' good-byes after the last round."""
TELLING_S = 1.0
"""How long the hub stays after a failure, so that the others hear of it."""

REASON_CHARS = 500

NO_STEP = (
    "no optimizer has stepped the pool in this process: in gradient mode every replica takes the fleet's steps with "
    "one like its own"
)

_joined = itertools.count()


class Session:
    """One replica's part in a run with peers. It begins when every replica has joined.

    Args:
        model: The module that the training loop calls.
        engine: Not started yet.
        link: Not started yet. Worker 0's of a replica only.
        hub: On replica 0.
        ask: How the fleet is, as the hub says. Worker 0's of a replica only.

    Raises:
        TsugiError: the fleet did not come together.
    """

    def __init__(
        self,
        model: nn.Module,
        engine: Engine,
        link: Link | None,
        hub: OwnHub | None,
        ask: Callable[[], FleetStatus] | None = None,
    ) -> None:
        self.engine, self._link, self._hub = engine, link, hub
        self._ask = ask
        self._hooks: Hooks | None = None
        if link is not None and isinstance(engine, KPoolEngine):
            link.start()
            engine.start(link)
        try:
            engine.join()
        except BaseException as error:
            self.leave(f"{type(error).__name__}: {error}")
            raise
        engine.progress.activity, engine.progress.started_s = "training", time.monotonic()
        self._hooks = Hooks(model, engine)

    def drain(self, timeout_s: float | None) -> None:
        """Ship what is left, take part until the last round is committed, end everything.

        Raises:
            ConfigError: in gradient mode, when no optimizer has ever stepped.
            TsugiError: the run has failed, or the others did not come to an end in time.
        """
        try:
            if self._hooks is not None:
                self._hooks.finish()
            self._unhook()
            if not self.engine.equipped:
                raise ConfigError([NO_STEP])
            self.engine.finish(meanwhile=self._patience(timeout_s))
        except BaseException as error:
            self.leave(f"{type(error).__name__}: {error}")
            raise
        if self._link is not None:
            self._link.bye()
        self._stop(PARTING_S, good=True)

    def status(self) -> FleetStatus:
        """How the fleet is, as the hub says.

        Raises:
            SidebandError: it does not answer.
        """
        if self._ask is None:
            raise SidebandError("only worker 0 of a replica talks to the hub")
        return self._ask()

    def set_aside(self) -> list[Tensor]:
        """Take what the loop has loaded into the pool's parameters out again: the pool goes on without it."""
        return self._hooks.set_aside() if self._hooks is not None else []

    def report(self, message: Figures | StopFleet) -> None:
        """Tell the hub, until it has heard. Worker 0's alone; nothing happens on the others."""
        if self._link is not None:
            self._link.report(message)

    def totals(self, number: int, timeout_s: float) -> Totals | None:
        """The sums of a reduction, if they come in time."""
        return self._link.totals(number, timeout_s) if self._link is not None else None

    def check(self) -> None:
        """Raise what has gone wrong meanwhile."""
        if isinstance(self.engine, KPoolEngine):
            self.engine.flags.check()

    def stop_all(self, reason: str) -> None:
        """Ask the hub to let everybody stop."""
        self.report(StopFleet(0, 0, "", str(reason)[:REASON_CHARS]))

    def _patience(self, timeout_s: float | None) -> Callable[[], None]:
        """What looks, while we wait for the end, whether there is anything to wait for."""
        if self._link is None or self._ask is None or not isinstance(self.engine, KPoolEngine):
            return lambda: None
        settings = self.engine.settings
        return Patience(self.engine.replica, self._ask, self._link, settings.round_timeout_s, timeout_s).look

    def count(self, tokens: int) -> None:
        """The newest forward pass, or the step if there was none, has so many tokens."""
        if self._hooks is not None:
            self._hooks.count(tokens)

    def leave(self, reason: str) -> None:
        """End everything now; the others are told why."""
        self._unhook()
        if self._link is not None and isinstance(self.engine, KPoolEngine):
            self._link.failed(f"replica {self.engine.replica}: {reason}")
        self._stop(TELLING_S, good=False)

    def _unhook(self) -> None:
        if self._hooks is not None:
            self._hooks.remove()

    def _stop(self, hub_s: float, good: bool) -> None:
        if self._link is not None:
            self._link.stop()
        if isinstance(self.engine, KPoolEngine):
            self.engine.stop()
        if self._hub is not None:
            self._hub.end(hub_s, good)


def meet(
    model: nn.Module,
    settings: KPool,
    adapter: str,
    place: World,
    address: str,
    keys: Path | None,
    grad_clip: float | None = None,
    inside: Inside = ALONE,
    trusted: bool = False,
) -> Session:
    """Be the hub or find it, and join.

    Args:
        model: A PEFT model.
        settings: Equal on all replicas.
        adapter: PEFT's name of the pool's LoRA.
        place: With peers.
        address: Where replica 0 listens, tcp://host:port.
        keys: The key file, if the user names one.
        grad_clip: Gradient mode: largest norm of a round's mean gradient; equal on all replicas.
        inside: The workers of our replica; only worker 0 looks for the hub.
        trusted: Who reaches the network between the machines does not break replicas' connections.

    Raises:
        ConfigError: the replicas are on several machines, and nobody has said that their network is trusted.
    """
    if inside.worker:
        return Session(model, Follower(model, settings, inside, adapter), None, None)
    path = keys if keys is not None else rendezvous.key_file(place, next(_joined))
    host = rendezvous.hub_host(place, address)
    here = place.one_machine and not place.named
    network = Network() if here else Network(own_address(host), trusted)
    engine = KPoolEngine(model, settings, place.replica, adapter, network, None, grad_clip, inside)
    equal = json.dumps([asdict(settings) | {"target_modules": None}, place.replicas, grad_clip])
    config_hash = hashlib.sha256(equal.encode()).hexdigest()
    hub = None
    if place.replica == 0:
        plan = _plan(settings, place, config_hash, sealed=not network.loopback)
        hub = OwnHub(plan, address, host, path, reuse=keys is not None)
    run_keys = hub.keys if hub else rendezvous.find_hub(path, host, address, START_TIMEOUT_S)
    layout = engine.pool.layout(settings.payload, settings.reduce)
    identity = Identity(place.replica, platform.node(), os.getpid(), config_hash, layout)
    link = Link(
        run_keys,
        identity,
        engine.beat,
        BEAT_S,
        SILENT_TIMEOUT_S,
        leases=False,
        vitals=Probe(place.local_replica).sample,
        hub_returns=False,
        limits=Limits(place.replicas, settings.n, sealed=run_keys.curve and not network.loopback),
    )
    return Session(model, engine, link, hub, hub.status if hub else partial(ask_status, run_keys, rendezvous.ASK_S))


def _plan(settings: KPool, place: World, config_hash: str, sealed: bool) -> HubPlan:
    """A hub without data to lease and without a launcher: every replica reads data of its own."""
    return HubPlan(
        run="library",
        config_hash=config_hash,
        replicas=place.replicas,
        kpool=settings,
        samples=0,
        micro_batch=1,
        lease_samples=1,
        start_timeout_s=START_TIMEOUT_S,
        silent_timeout_s=SILENT_TIMEOUT_S,
        supervised=False,
        sealed=sealed,
    )
