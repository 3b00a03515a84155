"""The Prometheus endpoint: figures of the status, read-only; a missing package is one clear error."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

import pytest

from tests.support import hub_plan
from tests.unit.test_messages import BEAT
from tsugi_cli.record.metrics import Metrics
from tsugi_kpool.core.hub.hub import Hub
from tsugi_kpool.core.hub.refusals import Kind
from tsugi_kpool.core.hub.status import fleet_status
from tsugi_kpool.core.messages import Hello
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
        text = urllib.request.urlopen(address, timeout=10).read().decode()
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(urllib.request.Request(address, data=b"x", method="POST"), timeout=10)
    finally:
        metrics.close()
    assert "tsugi_replicas_expected 2.0" in text
    assert 'tsugi_refused{kind="key"} 3.0' in text
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
