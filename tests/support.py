"""What tests share: settings, and fakes of what is outside."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import zmq

from tsugi_cli.record.records import Tail
from tsugi_kpool.core.effects import HubPlan, Told
from tsugi_kpool.core.events import Event
from tsugi_kpool.core.settings import KPool, Mode, Payload, Routing, SelectAt, Trigger

DEFAULT = KPool(
    n=4,
    k=2,
    mode=Mode.LOCAL,
    select_at=SelectAt.SHIP,
    routing=Routing.ROUND_ROBIN,
    trigger=Trigger.CONVERGENCE,
    eps="auto",
    count=4,
    min_steps=2,
    max_steps=10,
    payload=Payload.INT8,
    error_feedback=True,
    round_timeout_s=20.0,
    overlap=True,
    max_staleness=20,
)


def kpool(**changes: Any) -> KPool:
    """The usual settings with some changed."""
    return replace(DEFAULT, **changes)


def hub_plan(**changes: Any) -> HubPlan:
    """A plan of two replicas and 40 samples with some values changed."""
    plan = HubPlan(
        run="test",
        config_hash="c0ffee",
        replicas=2,
        kpool=DEFAULT,
        samples=40,
        micro_batch=1,
        lease_samples=2,
        start_timeout_s=30.0,
    )
    return replace(plan, **changes)


def tiny_model() -> Any:
    """A random Llama so small that a test makes it anew; always the same weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    return LlamaForCausalLM(config).eval()


def tiny_lora(settings: KPool, rank: int = 2, **changes: Any) -> Any:
    """The tiny model with its pool of adapters of this rank, as the worker builds it."""
    import torch

    from tsugi_cli.config.spec import Lora
    from tsugi_cli.finetune.lora import add_pool

    torch.manual_seed(1)
    values = {"rank": rank * settings.n, "alpha": 4.0 * settings.n, "target_modules": "all-linear"}
    return add_pool(tiny_model(), Lora(**{**values, **changes}))


def forking() -> Any:
    """Like multiprocessing with "spawn", but from a server that has imported torch and the others already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "peft", "transformers.models.llama.modeling_llama"])
    return context


def processes_of(run: Path) -> list[int]:
    """Ids of processes that were started for this run and still are: orphans, when it has ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(run.resolve()).encode() in words:
                found.append(int(entry.name))
    return found


def await_no_process_of(run: Path, wait_s: float = 60.0) -> None:
    """Wait until every process of this run has ended: those that have been told to still need a moment on a busy
    machine. An orphan would train on for longer: it waits two minutes for a hub that is gone."""
    await_true(lambda: not processes_of(run), f"the end of all processes of {run}", wait_s)


def end_with(number: int, *pids: int) -> None:
    """Send a signal to processes, some of which may have ended meanwhile."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines that a process may be writing: not a last line without its end."""
    return list(Tail(path).read())


def keeps_events(events: list[Event]) -> Callable[[Told], None]:
    """For a hub's `tell`: keeps its events, and nothing else."""

    def tell(told: Told) -> None:
        if isinstance(told, Event):
            events.append(told)

    return tell


def free_port() -> int:
    """A port that a program may take later: below those that the system hands out, so nobody gets it meanwhile."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port
    raise AssertionError("no free port")


def send_unheard(socket: zmq.Socket[bytes], frame: bytes) -> None:
    """Send a frame that the hub may refuse: a socket that was refused takes none, and a plain send waits for ever."""
    with contextlib.suppress(zmq.Again):
        socket.send(frame, zmq.NOBLOCK)


def await_true(condition: Callable[[], object], what: str, wait_s: float = 100.0) -> None:
    """Wait until it is so."""
    deadline_s = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what}: not in time"
        time.sleep(0.02)
