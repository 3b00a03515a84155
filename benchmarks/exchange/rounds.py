"""A round over the exchange against one over a gloo group: on one machine, between real processes, in turns.

    python benchmarks/exchange/rounds.py --replicas 2 4 8 --rounds 40

Every process reduces one round in each way, again and again: `group` gathers everybody's parts and sums them,
`sealed` does so with each part sealed, as between machines, and `exchange` sends one part and gets the mean. All
start from a barrier. The figures are milliseconds until the slowest member has the mean (medians over the rounds, the
exchange's disk included) with their quartiles, of each round the exchange's as a share of the group's, what each
member receives, in payloads, and how many processes wanted the machine meanwhile (`load`). `--raw` compares one
payload there and back by TLS and by plain TCP with AES-GCM around it.
"""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as multiprocessing
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from torch.distributed import FileStore

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import save
from tsugi_cli.launch.exchange_process import ExchangeProcess
from tsugi_kpool.codec import header
from tsugi_kpool.codec.coding import coded_bytes, encode
from tsugi_kpool.codec.summing import weighted_sum
from tsugi_kpool.core.hub.seats import seat_key
from tsugi_kpool.core.hub.tickets import Tickets
from tsugi_kpool.core.settings import Payload
from tsugi_kpool.engine.collective import GlooGroup
from tsugi_kpool.engine.sealed import Nonces, Seal, SealedGroup
from tsugi_kpool.exchange.certificates import member_context, member_credentials, server_context, server_credentials
from tsugi_kpool.exchange.client import ExchangeClient, Place
from tsugi_kpool.exchange.frames import Part
from tsugi_kpool.exchange.process import Orders
from tsugi_kpool.exchange.reduction import opened

HUB, MEMBERS, KEY, RUN = "the hub's secret", "the members' secret", bytes(range(32)), "a run"
NUMBERS = 1_181_000
"""Of int8: 1.2 MB with their scales."""
WARM = 3
WAYS = ("group", "sealed", "exchange")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--raw", action="store_true", help="TLS against TCP with AES-GCM, one payload there and back")
    parser.add_argument("--dry", action="store_true", help="print, write no result file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = [run(replicas, arguments.rounds) for replicas in arguments.replicas]
    found: dict[str, Any] = {"payload_bytes": coded_bytes(NUMBERS, Payload.INT8), "runs": runs}
    if arguments.raw:
        found["raw"] = raw(arguments.rounds)
    for each in [*runs, found.get("raw")]:
        print(each, flush=True)
    if not arguments.dry:
        save("exchange", found)


def run(replicas: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        exchange = ExchangeProcess(
            "127.0.0.1", 0, Orders(folder, replicas, HUB, MEMBERS, 1, RUN), print, lambda *_: None, print
        )
        port = exchange.start()
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        arguments = (replicas, port, rounds, f"{folder}/store", queue)
        members = [context.Process(target=member, args=(rank, *arguments), daemon=True) for rank in range(replicas)]
        for each in members:
            each.start()
        told = [queue.get(timeout=600) for _ in members]
        for each in members:
            each.join()
        exchange.stop()
    slowest = {way: 1000 * np.max([each[way] for each in told], axis=0) for way in WAYS}
    return {
        "replicas": replicas,
        "ms": {way: round(float(np.median(slowest[way])), 1) for way in WAYS},
        "ms_quartiles": {way: np.percentile(slowest[way], (25, 75)).round(1).tolist() for way in WAYS},
        "ratio": round(float(np.median(slowest["exchange"] / slowest["group"])), 2),
        "ratio_quartiles": np.percentile(slowest["exchange"] / slowest["group"], (25, 75)).round(2).tolist(),
        "load": round(os.getloadavg()[0], 1),
        "received_payloads": {way: round(told[0]["received"][way], 3) for way in WAYS},
    }


def member(
    rank: int,
    replicas: int,
    port: int,
    rounds: int,
    store: str,
    queue: Any,
    own: str = "127.0.0.1",
    hub: str = "127.0.0.1",
    ways: tuple[str, ...] = WAYS,
    warm: int = WARM,
    ahead: int = 0,
) -> None:
    """One replica: its seconds of each round in each way, and its received payloads of one round.

    With `ahead` rounds follow each other without a barrier, too: so many first that are not counted.
    """
    torch.set_num_threads(1)
    group = GlooGroup(FileStore(store, replicas), rank, replicas, own, 120.0)  # type: ignore[arg-type]
    sealed = SealedGroup(group, Seal(KEY, 1, tuple(range(replicas)), rank, Nonces()))
    context = member_context(member_credentials(MEMBERS), server_credentials(HUB).certificate)
    client = ExchangeClient(Place(hub, port, rank, seat_key(HUB, rank)), context, 120.0)
    values = np.random.default_rng(rank).standard_normal((1, NUMBERS)).astype(np.float32)
    packed = np.concatenate(
        [header.header([10], [2], [0.0], 0.1).reshape(-1).view(np.uint8), encode(values, Payload.INT8)]
    )
    took: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(1, rounds + warm + 1):
        for way in ways:
            group.gather(torch.zeros(1, dtype=torch.uint8))  # a barrier
            began_s = time.perf_counter()
            if way == "exchange":
                exchanged(client, packed, number, replicas)
            else:
                gathered(group if way == "group" else sealed, packed, replicas)
            took[way].append(time.perf_counter() - began_s)
    received = client.received / (rounds + warm) / packed.size
    result: dict[str, Any] = {way: found[warm:] for way, found in took.items()}
    if ahead:
        group.gather(torch.zeros(1, dtype=torch.uint8))
        result["ahead"] = one_after_the_other(client, packed, rounds + warm + 1, ahead + rounds, replicas)[ahead:]
    queue.put(result | {"received": {"group": replicas - 1, "sealed": replicas - 1, "exchange": received}})


def one_after_the_other(
    client: ExchangeClient, packed: np.ndarray[Any, Any], first: int, rounds: int, replicas: int
) -> list[float]:
    """Seconds from each result to the next one, where a member begins the next round as soon as it has the last one's
    result, whatever the others have."""
    ended = [time.perf_counter()]
    for number in range(first, first + rounds):
        exchanged(client, packed, number, replicas)
        ended.append(time.perf_counter())
    return np.diff(ended).tolist()


def gathered(group: Any, packed: np.ndarray[Any, Any], replicas: int) -> None:
    parts = [each.numpy()[header.header_bytes(1) :] for each in group.gather(torch.from_numpy(packed))]
    weighted_sum(parts, np.full((replicas, 1), 1.0 / replicas, np.float32), (1, NUMBERS), Payload.INT8)


def exchanged(client: ExchangeClient, packed: np.ndarray[Any, Any], number: int, replicas: int) -> None:
    members = tuple(range(replicas))
    ticket = Tickets(RUN, HUB).of_round(1, number, number - 1, (0,), members, number - 1)
    part = Part(1, number, number - 1, (0,), members, NUMBERS, "int8", number - 1, ticket=ticket)
    client.reduce_with(part, packed.data, lambda result, body: opened(part, result, np.frombuffer(body, np.uint8)))


def raw(rounds: int) -> dict[str, float]:
    """Milliseconds of one payload there and back over loopback: TLS 1.3, and TCP with AES-GCM around the payload."""
    payload = secrets.token_bytes(coded_bytes(NUMBERS, Payload.INT8))
    return {"tls_ms": _echoed(payload, rounds, True), "aes_gcm_ms": _echoed(payload, rounds, False)}


def _echoed(payload: bytes, rounds: int, tls: bool) -> float:
    own, others = server_credentials(HUB), member_credentials(MEMBERS)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        plain, _ = listener.accept()
        connection = server_context(own, others.certificate).wrap_socket(plain, server_side=True) if tls else plain
        for _ in range(rounds):
            _give(connection, _take(connection, tls), tls)

    threading.Thread(target=serve, daemon=True).start()
    plain = socket.create_connection(listener.getsockname())
    connection = member_context(others, own.certificate).wrap_socket(plain) if tls else plain
    took = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        _give(connection, payload, tls)
        _take(connection, tls)
        took.append(time.perf_counter() - began_s)
    return round(1000 * statistics.median(took), 2)


def _give(connection: socket.socket, payload: bytes, tls: bool) -> None:
    if not tls:
        nonce = secrets.token_bytes(12)
        payload = nonce + AESGCM(KEY).encrypt(nonce, payload, None)
    connection.sendall(len(payload).to_bytes(8, "big"))
    connection.sendall(payload)


def _take(connection: socket.socket, tls: bool) -> bytes:
    size = int.from_bytes(_exactly(connection, 8), "big")
    data = bytes(_exactly(connection, size))
    return data if tls else AESGCM(KEY).decrypt(data[:12], data[12:], None)


def _exactly(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view, filled = memoryview(data), 0
    while filled < size:
        filled += connection.recv_into(view[filled:])
    return data


if __name__ == "__main__":
    main()
