"""The Prometheus exporter: the figures of FleetStatus, read-only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tsugi_kpool.core.hub.refusals import Kind
from tsugi_kpool.core.messages import FleetStatus, ReplicaStatus
from tsugi_kpool.errors import MachineError

FLEET: dict[str, tuple[str, Callable[[FleetStatus], float | None]]] = {
    "version": ("Rounds committed.", lambda s: s.version),
    "generation": ("The present generation.", lambda s: s.generation),
    "replicas_expected": ("Replicas of the complete run.", lambda s: s.expected),
    "replicas_joined": ("Replicas that have joined.", lambda s: s.joined),
    "elapsed_seconds": ("Since the run began.", lambda s: s.elapsed_s),
    "samples": ("Samples trained on.", lambda s: s.samples_done),
    "samples_expected": ("Samples of the whole run.", lambda s: s.samples_total),
    "tokens": ("Supervised tokens trained on.", lambda s: s.tokens),
    "tokens_per_second": ("The fleet's rate.", lambda s: s.tokens_per_s),
    "goodput_ratio": ("Tokens as a share of what the replicas' own rates allow.", lambda s: s.goodput),
    "loss": ("Smoothed training loss.", lambda s: s.loss),
    "rounds_aborted": ("Rounds aborted.", lambda s: s.aborted),
}
REPLICA: dict[str, tuple[str, Callable[[ReplicaStatus], float | None]]] = {
    "steps": ("Steps.", lambda r: r.steps),
    "tokens": ("Supervised tokens trained on.", lambda r: r.tokens),
    "tokens_per_second": ("Its own rate.", lambda r: r.tokens_per_s),
    "step_seconds": ("Duration of the newest step.", lambda r: r.step_s),
    "lag_seconds": ("Behind the furthest replica.", lambda r: r.lag_s),
    "lag_steps": ("Behind the furthest replica.", lambda r: r.lag_steps),
    "fill_ratio": ("Buffered, as a share of what fires a round.", lambda r: r.fill),
    "share_ratio": ("Part of all committed weight.", lambda r: r.share),
    "silent_seconds": ("Since its last beat.", lambda r: r.silent_s),
    "rtt_seconds": ("Round trip to the hub.", lambda r: r.rtt_s),
    "slow_factor": ("How many times as long it takes as usual; absent while it is not slow.",
                    lambda r: r.slowness.factor if r.slowness else None),
    "sideband_sent_bytes": ("Sent over the sideband.", lambda r: r.up_bytes),
    "sideband_received_bytes": ("Received over the sideband.", lambda r: r.down_bytes),
}  # fmt: skip


class Metrics:
    """The sink for Prometheus: an HTTP server in a thread of its own that answers with the newest status.

    Args:
        bind: An address of this machine.
        port: Where to listen.

    Raises:
        MachineError: prometheus-client is not installed, or this address cannot be listened at.
    """

    name = "Prometheus"

    def __init__(self, bind: str, port: int) -> None:
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ImportError as error:
            raise MachineError(
                "sideband.metrics_port needs one more package: pip install 'tsugi[metrics]'"
            ) from error
        registry = CollectorRegistry()
        self._collector = _Collector()
        registry.register(self._collector)
        try:
            self._server, self._thread = start_http_server(port, bind, registry)
        except OSError as error:
            raise MachineError(f"metrics cannot listen on {bind}:{port}: {error.strerror}") from error
        self.port: int = self._server.server_port

    def event(self, event: Mapping[str, Any]) -> None:
        """Do nothing: Prometheus reads figures only."""

    def status(self, status: FleetStatus) -> None:
        """Keep the status for the next scrape."""
        self._collector.newest = status

    def close(self) -> None:
        """End the server and its thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


class _Collector:
    """The collector, which prometheus_client asks at every scrape."""

    def __init__(self) -> None:
        self.newest: FleetStatus | None = None
        """None before the first status: then there are no figures."""

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        if (status := self.newest) is None:
            return
        info = GaugeMetricFamily("tsugi_run", "Always 1; its labels name the run.", labels=["run", "stage", "health"])
        info.add_metric([status.run, status.stage, status.health], 1.0)
        yield info
        for name, (about, value) in FLEET.items():
            if (found := value(status)) is not None:
                yield GaugeMetricFamily(f"tsugi_{name}", about, value=found)
        refused = GaugeMetricFamily("tsugi_refused", "What the hub has not taken in.", labels=["kind"])
        for kind, count in (dict.fromkeys(Kind, 0) | status.refused).items():  # from 0 on, so that a rise is seen
            refused.add_metric([kind], count)
        yield refused
        yield from self._replicas(status)

    def _replicas(self, status: FleetStatus) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        for name, (about, value) in REPLICA.items():
            family = GaugeMetricFamily(f"tsugi_replica_{name}", about, labels=["replica", "host"])
            for row in status.replicas:
                if (found := value(row)) is not None:
                    family.add_metric([str(row.replica), row.host], found)
            yield family
