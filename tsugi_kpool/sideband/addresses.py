"""Addresses of machines and hubs: IPv4, IPv6 and names, as users write them and as sockets want them."""

from __future__ import annotations

import ipaddress
import re
import socket

from tsugi_kpool.errors import MachineError

TCP = "tcp://"
WILDCARDS = ("0.0.0.0", "*", "::")
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})?|\[[0-9a-fA-F:.]{2,45}\])"
_HUB = re.compile(rf"tcp://{_HOST}:\d{{1,5}}")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


def split(address: str) -> tuple[str, int]:
    """Return host and port of tcp://host:port; an IPv6 address without its brackets."""
    host, _, port = address.removeprefix(TCP).rpartition(":")
    return host.strip("[]"), int(port)


def joined(host: str, port: int) -> str:
    """Return tcp://host:port, with brackets where an IPv6 address has colons of its own."""
    return f"{TCP}[{host}]:{port}" if ":" in host else f"{TCP}{host}:{port}"


def is_hub(address: str) -> bool:
    """Return whether this is tcp://host:port; an IPv6 address stands in brackets."""
    if not _HUB.fullmatch(address):
        return False
    host, port = split(address)
    return port < 65536 and (":" not in host or is_ip(host))


def hub_address(text: str, port: int) -> str | None:
    """Return HOST or HOST:PORT as tcp://host:port; None where it is neither.

    Args:
        text: As a user writes it; an IPv6 address in brackets, or alone.
        port: Where the text has none.
    """
    if is_ip(text) or is_host(text):
        return joined(text, port)
    address = f"{TCP}{text}" if re.search(r":\d+$", text) else f"{TCP}{text}:{port}"
    return address if is_hub(address) else None


def is_ip(text: str) -> bool:
    """Return whether this is an IPv4 or IPv6 address, in numbers and without brackets."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def is_host(text: str) -> bool:
    """Return whether this is an address in numbers, or may be a machine's name."""
    return is_ip(text) or (_NAME.fullmatch(text) is not None and not text.replace(".", "").isdigit())


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the address."""
    return ipaddress.ip_address(host).is_loopback if is_ip(host) else host == "localhost"


def number_of(host: str) -> str:
    """Return the address of a machine in numbers: the IPv4 one where its name has both.

    Raises:
        OSError: nobody knows the name.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return str(min(found, key=lambda each: each[0] != socket.AF_INET)[4][0])


def needs_ipv6(address: str) -> bool:
    """Return whether a hub's tcp://host:port is reached by IPv6: it is one, or its name has no IPv4 address."""
    host = split(address)[0]
    if is_ip(host):
        return ":" in host
    try:
        return ":" in number_of(host)
    except OSError:
        return False  # nobody knows the name yet


def own_address(host: str) -> str:
    """Return this machine's address on the way to `host`, which may be a name. Nothing is sent.

    Raises:
        MachineError: there is no way to it.
    """
    try:
        number = host if is_ip(host) else number_of(host)
        with socket.socket(socket.AF_INET6 if ":" in number else socket.AF_INET, socket.SOCK_DGRAM) as way:
            way.connect((number, 9))
            return str(way.getsockname()[0])
    except OSError as error:
        raise MachineError(f"cannot reach the hub's machine {host}: {error}") from error
