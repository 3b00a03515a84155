"""Certificates of a run's exchange: made of the run's keys, so that nothing new has to be kept or carried.

The exchange's key is made of the hub's secret, and its certificate travels to members over the sideband, which their
token has let them trust. The members' is made of the secret in their token: it says "a member of this run", as the
sideband's key does, and the place that a replica shows says which one. Both have no end: a machine's clock may be
wrong, and a run's keys end with the run.
"""

from __future__ import annotations

import hashlib
import ssl
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

SERVER, MEMBER = "tsugi exchange", "tsugi member"
BEGINS, ENDS = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)


@dataclass(frozen=True)
class Credentials:
    """A certificate and its key, PEM."""

    certificate: str
    key: str


def server_credentials(hub_secret: str) -> Credentials:
    """Return those of the exchange of the hub with this secret."""
    return _made(SERVER, hub_secret.encode())


def member_credentials(member_secret: str) -> Credentials:
    """Return those of the members, who all have this secret."""
    return _made(MEMBER, member_secret.encode())


def server_context(own: Credentials, members: str) -> ssl.SSLContext:
    """Return the exchange's side of TLS 1.3: who shows no member's certificate is not let in."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, own, members)
    context.num_tickets = 0  # nobody resumes a session
    return context


def member_context(own: Credentials, server: str) -> ssl.SSLContext:
    """Return a member's side: an exchange without this very certificate is none."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, own, server)
    context.check_hostname = False  # the certificate is the run's own, whatever the hub's address is
    return context


def trying_context(own: Credentials) -> ssl.SSLContext:
    """Return the side of a member who only tries whether an exchange is there, and sends it nothing: any will do."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _show(context, own)
    return context


def _context(side: int, own: Credentials, other: str) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=other)
    _show(context, own)
    return context


def _show(context: ssl.SSLContext, own: Credentials) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # ssl reads a key from a file only. The folder is this user's alone, and gone at once.
    with tempfile.TemporaryDirectory(prefix="tsugi-") as folder:
        path = Path(folder) / "own.pem"
        path.touch(mode=0o600)
        path.write_text(own.key + own.certificate)
        context.load_cert_chain(path)


def _made(name: str, secret: bytes) -> Credentials:
    """Return a certificate that signs itself. Ed25519 has no randomness: the same secret makes the same bytes."""
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode() + b"\0" + secret).digest())
    called = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(called)
        .issuer_name(called)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(BEGINS)
        .not_valid_after(ENDS)
        .sign(key, None)
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Credentials(made.public_bytes(Encoding.PEM).decode(), private.decode())
