"""Whether one replica reaches another: what both say over a trial connection, and the words for a failure.

Whoever dials shows that it knows the generation's key, and so does whoever answers. Then both send as much as fills
several packets: a path that drops large packets, and says so to nobody (an MTU black hole), lets small ones through.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
from ipaddress import ip_address

NONCE_BYTES, PROOF_BYTES = 16, 32
FULL = bytes(8192)
"""Six packets of an Ethernet."""
HEAD = struct.Struct("!QII")
"""Generation, who dials, who is dialled."""
HELLO_BYTES = HEAD.size + NONCE_BYTES + PROOF_BYTES
NO_ANSWER = "no answer to a connection (a firewall, or NAT?)"
REFUSED = "the connection is refused (a firewall?)"
NO_WORD = "it connects, and then nothing comes (a proxy, or a firewall?)"
STRANGER = "somebody else answers there"
TOO_LARGE = "small packets pass and large ones do not (MTU: try 1280, or let ICMP through)"


def key_of(generation: int, replica: int) -> str:
    """Return the rendezvous store's key under which a replica says where it is dialled."""
    return f"epoch{generation}/reach/{replica}"


def is_own(key: str, replica: int) -> bool:
    """Return whether a replica may store something under this key: where it is dialled nobody else says."""
    front, between, whose = key.rpartition("/reach/")
    return not between or (whose == str(replica) and "/" not in front)


def read_address(said: bytes, ours: str) -> tuple[str, int] | None:
    """Return where a replica says that it is dialled; None where that is no address of another machine.

    It is dialled whatever it says. So it is a plain address, no name that is looked up, and no service of this
    machine unless all are on it.

    Args:
        said: As it stands in the rendezvous store: address and port.
        ours: The address that we listen at.
    """
    host, _, port = said.decode("ascii", "replace").partition(" ")
    try:
        found, own = ip_address(host.partition("%")[0]), ip_address(ours.partition("%")[0])
    except ValueError:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,4}", port) or int(port) > 65535:
        return None
    strange = found.is_multicast or found.is_unspecified or (found.is_loopback and not own.is_loopback)
    return None if strange else (host, int(port))


def hello(key: bytes, generation: int, dials: int, dialled: int, nonce: bytes) -> bytes:
    """Return the first words of whoever dials; an answer to them is `answer`."""
    head = HEAD.pack(generation, dials, dialled) + nonce
    return head + _proof(key, b"hello", head)


def answer(key: bytes, generation: int, dialled: int, said: bytes) -> bytes | None:
    """Return what is answered to a hello; None where it is none, or for somebody else."""
    head, proof = said[: HEAD.size + NONCE_BYTES], said[HEAD.size + NONCE_BYTES :]
    meant = HEAD.unpack_from(head)
    if (meant[0], meant[2]) != (generation, dialled) or not hmac.compare_digest(proof, _proof(key, b"hello", head)):
        return None
    return _proof(key, b"answer", head)


def expected(key: bytes, said: bytes) -> bytes:
    """Return the only right answer to our hello."""
    return _proof(key, b"answer", said[: HEAD.size + NONCE_BYTES])


def words(replica: int, other: int, address: str, why: str) -> str:
    """Return who does not reach whom, where, and why."""
    return f"replica {replica} cannot reach replica {other} at {address}: {why}"


def _proof(key: bytes, kind: bytes, head: bytes) -> bytes:
    return hmac.digest(key, b"tsugi reach " + kind + b" " + head, hashlib.sha256)
