"""The probe: real facts where the machine offers them, unknown where it does not, never an error."""

from __future__ import annotations

import sys
import threading
import time
from types import SimpleNamespace

import psutil
import pytest

from tsugi_kpool import machine
from tsugi_kpool.core.messages.facts import UNKNOWN, MachineFacts
from tsugi_kpool.machine import Probe


def compute(seconds: float) -> None:
    """Use the CPU for this long, by its own clock."""
    start_s = time.thread_time()
    while time.thread_time() - start_s < seconds:
        pass


def test_a_thread_that_computes_is_told_from_one_that_sleeps():
    probe = Probe()
    probe.sample()
    compute(0.3)
    computing = probe.sample()
    time.sleep(0.3)
    sleeping = probe.sample()
    assert 0.0 <= sleeping.thread_share < computing.thread_share <= 1.05
    assert sleeping.cpu_share < computing.cpu_share
    assert sleeping.thread_share < 0.2


def test_the_thread_that_made_the_probe_is_the_one_that_is_watched():
    probe = Probe()
    samples = []
    sampler = threading.Thread(target=lambda: samples.append(probe.sample()))
    begun_s = time.monotonic()
    probe.sample()
    compute(0.2)
    sampler.start()
    sampler.join(60)
    # However long others have kept the core, it had 0.2 s of it; the sampler had next to none.
    assert samples[0].thread_share * (time.monotonic() - begun_s) > 0.15


def test_levels_are_known_at_once_and_rates_after_the_second_sample():
    probe = Probe()
    first = probe.sample()
    assert 0.0 < first.memory_free < 1.0
    assert first.cpu_share == UNKNOWN
    compute(0.05)
    second = probe.sample()
    assert 0.0 <= second.busy <= 1.0
    assert second.major_faults_per_s >= 0.0


@pytest.mark.parametrize("name", ["cpu_times", "virtual_memory", "swap_memory", "getloadavg"])
def test_what_the_machine_does_not_offer_is_unknown_and_the_rest_known(monkeypatch, name):
    def refuse(*_):
        raise OSError("not here")

    monkeypatch.setattr(psutil, name, refuse)
    probe = Probe()
    probe.sample()
    compute(0.05)
    facts = probe.sample()
    assert facts.cpu_share >= 0.0
    gone = {"cpu_times": "busy", "swap_memory": "swap_in_bytes_per_s"}.get(name, "memory_free")
    assert getattr(facts, gone) == UNKNOWN


def test_segments_sent_again_are_counted_per_second(monkeypatch, tmp_path):
    snmp = tmp_path / "snmp"
    monkeypatch.setattr(machine, "SNMP", snmp)
    probe, lines = Probe(), "Ip: A\nIp: 1\nTcp: RtoMin RetransSegs InErrs\nTcp: 200 {} 0\nUdp: A\nUdp: 7\n"
    snmp.write_text(lines.format(100))
    assert probe.sample().resent_per_s == UNKNOWN
    snmp.write_text(lines.format(150))
    assert probe.sample().resent_per_s > 0.0
    snmp.unlink()
    probe.sample()
    assert probe.sample().resent_per_s == UNKNOWN


def test_an_error_of_the_probe_itself_gives_no_facts(monkeypatch):
    probe = Probe()
    monkeypatch.setattr(probe, "_totals", lambda: 1 / 0)
    assert probe.sample() == MachineFacts()


def test_counters_that_run_backwards_give_no_negative_shares():
    """A migrated virtual machine may show less steal than before."""
    rates = machine._rates({"steal": -5.0, "busy": 1.0, "cpu_total": 2.0, "cpu_share": -1.0}, 1.0)
    assert rates == {"steal": 0.0, "busy": 0.5, "cpu_share": 0.0}


def fake_nvml(**changes):
    """NVML with one throttled device, so far as the probe uses it."""
    functions = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetHandleByUUID": lambda name: name,
        "nvmlDeviceGetMaxClockInfo": lambda handle, kind: 2000,
        "nvmlDeviceGetClockInfo": lambda handle, kind: 900,
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=97),
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: 0x4 | 0x20,
        "NVML_CLOCK_SM": 1,
        "nvmlClocksThrottleReasonSwPowerCap": 0x4,
        "nvmlClocksThrottleReasonSwThermalSlowdown": 0x20,
    }
    return SimpleNamespace(**{**functions, **changes})


def test_a_throttled_gpu_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    facts = Probe().sample()
    assert (facts.gpu_clock, facts.gpu_busy) == (0.45, 0.97)
    assert facts.gpu_throttle == "power limit, heat"


def test_a_gpu_that_stops_answering_is_unknown(monkeypatch):
    def lost(handle):
        raise RuntimeError("GPU is lost")

    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(nvmlDeviceGetUtilizationRates=lost))
    facts = Probe().sample()
    assert (facts.gpu_clock, facts.gpu_throttle) == (UNKNOWN, "")
    assert facts.memory_free > 0.0


def test_visible_devices_are_counted_as_cuda_counts_them(monkeypatch):
    handles = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-abc")
    module = fake_nvml(nvmlDeviceGetMaxClockInfo=lambda handle, kind: handles.append(handle) or 2000)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    Probe(0), Probe(1)
    assert handles == [3, "GPU-abc"]
