"""The Prometheus endpoint: figures of the status, read-only; a missing package is one clear error."""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from msgspec import structs

from tests.support import hub_plan
from tests.unit.test_messages import BEAT
from tsugi_cli.record.metrics import FLEET, REPLICA, Metrics, _Collector
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.refusals import Kind
from tsugi_kpool.core.hub.status import fleet_status
from tsugi_kpool.core.messages import Hello, Slowness
from tsugi_kpool.errors import MachineError


@pytest.fixture
def status():
    import msgspec

    hub = Hub(hub_plan(), 0.0)
    hub.receive(Hello(1, 0, "i", 'a "host"\n', 1, "c0ffee", "l"), 0.0)
    hub.receive(msgspec.structs.replace(BEAT, replica=0, incarnation="i", pooled=(1,) * 4), 1.0)
    hub.refusals.add(Kind.KEY, 3)
    return fleet_status(hub, 2.0)


def test_a_scrape_holds_the_status(status):
    pytest.importorskip("prometheus_client")
    metrics = Metrics("127.0.0.1", 0)
    try:
        metrics.status(status)
        address = f"http://127.0.0.1:{metrics.port}/metrics"
        text = urllib.request.urlopen(address, timeout=60).read().decode()
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(urllib.request.Request(address, data=b"x", method="POST"), timeout=60)
    finally:
        metrics.close()
    assert "tsugi_replicas_expected 2.0" in text
    assert 'tsugi_refused{kind="key"} 3.0' in text
    assert 'tsugi_refused{kind="flood"} 0.0' in text, "a rise from nothing is one"
    assert f'tsugi_replica_tokens{{host="a \\"host\\"\\n",replica="0"}} {float(BEAT.tokens)}' in text


def test_a_busy_port_is_one_clear_error(status):
    pytest.importorskip("prometheus_client")
    first = Metrics("127.0.0.1", 0)
    try:
        with pytest.raises(MachineError, match=f"cannot listen on 127.0.0.1:{first.port}"):
            Metrics("127.0.0.1", first.port)
    finally:
        first.close()


def test_a_missing_package_is_named(status, monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MachineError, match=r"pip install 'tsugi\[metrics\]'"):
        Metrics("127.0.0.1", 0)


BOARD = Path(__file__).parent.parent.parent / "docs" / "grafana.json"


def test_the_dashboard_shows_every_figure_and_no_other(status):
    """Every panel of docs/grafana.json asks for figures and labels that a scrape has; every figure has a panel."""
    pytest.importorskip("prometheus_client")
    slow = Slowness(2.0, 1.0, 0.1, 0.2, "step", "compute", ())
    rows = tuple(structs.replace(row, slowness=slow, rtt_s=0.1) for row in status.replicas)
    collector = _Collector()
    collector.newest = structs.replace(status, replicas=rows, goodput=0.9, loss=1.0)
    labels = {
        family.name: {name for each in family.samples for name in each.labels} for family in collector.collect()
    }
    assert {f"tsugi_{name}" for name in FLEET} | {f"tsugi_replica_{name}" for name in REPLICA} < set(labels)
    shown = set()
    for panel in json.loads(BOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel["targets"]:
            asked = re.findall(r"tsugi_\w+", target["expr"])
            assert asked
            assert set(asked) <= set(labels), panel["title"]
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels[asked[0]], panel["title"]
            shown |= set(asked)
    assert shown == set(labels)
