"""Routers and firewalls of network namespaces: `python -m tests.nat masquerade DEVICE` and `... only PORT ...`.

It speaks to the kernel's nf_tables itself, because not every machine has the command `nft`. It changes the network
namespace that it runs in, and no other.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

NETLINK_NETFILTER, NFTABLES = 12, 10
BATCH_BEGIN, BATCH_END = 0x10, 0x11
TABLE, CHAIN, RULE = 0, 3, 6
REQUEST, ACK, CREATE, APPEND = 1, 4, 0x400, 0x800
PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)
ACCEPT, DROP = 1, 0
OIFNAME, IIFNAME, L4PROTO = 7, 6, 16
REGISTER, VERDICT = 1, 0
KNOWN = 2 | 4
"""Of a connection's states: established, related."""
NAME_BYTES = 16
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


class NoTables(Exception):
    """This kernel has no such tables, or this user may not change them."""


def attribute(kind: int, data: bytes | Sequence[bytes]) -> bytes:
    nested = not isinstance(data, bytes)
    body = b"".join(data) if nested else data
    head = struct.pack("HH", 4 + len(body), kind | (0x8000 if nested else 0))
    return head + body + bytes(-len(body) % 4)


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def expression(name: str, *data: bytes) -> bytes:
    return attribute(1, [text(1, name), attribute(2, list(data))])


def equals(value: bytes) -> bytes:
    return expression("cmp", number(1, REGISTER), number(2, 0), attribute(3, [attribute(1, value)]))


def meta(key: int) -> bytes:
    return expression("meta", number(1, REGISTER), number(2, key))


def device(key: int, name: str) -> list[bytes]:
    return [meta(key), equals(name.encode().ljust(NAME_BYTES, b"\0"))]


def port(value: int) -> list[bytes]:
    """TCP to this port."""
    load = expression("payload", number(1, REGISTER), number(2, 2), number(3, 2), number(4, 2))
    return [meta(L4PROTO), equals(bytes([socket.IPPROTO_TCP])), load, equals(struct.pack("!H", value))]


def known() -> list[bytes]:
    """Of a connection that is there already."""
    mask = attribute(4, [attribute(1, struct.pack("I", KNOWN))])
    none = struct.pack("I", 0)
    masked = expression(
        "bitwise", number(1, REGISTER), number(2, REGISTER), number(3, 4), mask, attribute(5, [attribute(1, none)])
    )
    differs = expression("cmp", number(1, REGISTER), number(2, 1), attribute(3, [attribute(1, none)]))
    return [expression("ct", number(1, REGISTER), number(2, 0)), masked, differs]


def accept() -> bytes:
    verdict = attribute(2, [attribute(2, [number(1, ACCEPT)])])
    return expression("immediate", number(1, VERDICT), verdict)


def chain(name: str, kind: str, hook: int, priority: int, policy: int) -> tuple[int, bytes]:
    where = attribute(4, [number(1, hook), number(2, priority)])
    return CHAIN, text(1, "tsugi") + text(3, name) + where + number(5, policy) + text(7, kind)


def rule(name: str, expressions: Sequence[bytes]) -> tuple[int, bytes]:
    return RULE, text(1, "tsugi") + text(2, name) + attribute(4, list(expressions))


def masquerade(out: str) -> Iterator[tuple[int, bytes]]:
    """Whoever is behind us goes out by this device under our address; from there only answers come in."""
    yield chain("out", "nat", POSTROUTING, 100, ACCEPT)
    yield rule("out", [*device(OIFNAME, out), expression("masq")])
    yield chain("through", "filter", FORWARD, 0, DROP)
    yield rule("through", [*known(), accept()])
    yield rule("through", [*device(OIFNAME, out), accept()])
    yield from only([])


def only(ports: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Nothing reaches this machine but answers, itself, and TCP to these ports."""
    yield chain("in", "filter", INPUT, 0, DROP)
    yield rule("in", [*known(), accept()])
    yield rule("in", [*device(IIFNAME, "lo"), accept()])
    for each in ports:
        yield rule("in", [*port(each), accept()])


def change(orders: Sequence[tuple[int, bytes]]) -> None:
    """Make a table of these chains and rules, whole or not at all.

    Raises:
        NoTables: says why.
    """
    family = struct.pack("!BBH", socket.AF_UNSPEC, 0, NFTABLES)
    batch = struct.pack("IHHII", 20, BATCH_BEGIN, REQUEST, 0, 0) + family
    for sequence, (kind, data) in enumerate([(TABLE, text(1, "tsugi")), *orders], start=1):
        flags = REQUEST | ACK | CREATE | APPEND
        head = struct.pack("IHHII", 20 + len(data), NFTABLES << 8 | kind, flags, sequence, 0)
        batch += head + struct.pack("!BBH", socket.AF_INET, 0, 0) + data
    batch += struct.pack("IHHII", 20, BATCH_END, REQUEST, len(orders) + 2, 0) + family
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as kernel:
            kernel.settimeout(10)
            kernel.sendto(batch, (0, 0))
            missing = len(orders) + 1
            while missing:
                missing -= _answers(kernel.recv(1 << 16))
    except OSError as error:
        raise NoTables(f"nf_tables: {error}") from error


def _answers(data: bytes) -> int:
    """How many orders this acknowledges."""
    count = 0
    while data:
        size, kind = struct.unpack("IH", data[:6])
        if kind == 2:
            count += 1
            (code,) = struct.unpack("i", data[16:20])
            if code:
                raise OSError(-code, f"{errno.errorcode.get(-code)}: {os.strerror(-code)}")
        data = data[(size + 3) & ~3 :]
    return count


def main(words: Sequence[str]) -> int:
    try:
        if words[0] == "masquerade":
            change(list(masquerade(words[1])))
            FORWARDING.write_text("1")
        else:
            change(list(only([int(each) for each in words[1:]])))
    except (NoTables, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
