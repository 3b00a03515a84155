"""Which process may be which replica: who says Hello must show that it was given that place.

The proof is a key made of the hub's secret, the replica and the ticket that the place was given to. A launcher's own
replicas, which no ticket is given, have one of the replica alone: only who may read the run's key file can make it.
Nothing of it needs to be written down: another hub of the same run has the same secret, and its journal the tickets.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from tsugi_kpool.core.messages import Hello

from .slots import Slots

SEAT_CHARS = 32
"""128 bits in hexadecimal."""
NOT_GIVEN = "this process does not hold replica {replica}'s place: `tsugi join` asks for one"


def seat_key(secret: str, replica: int, ticket: str = "") -> str:
    """What the holder of a place shows in its Hello.

    Args:
        secret: The hub's.
        replica: Which one.
        ticket: That has the place; empty for a replica that the hub's owner starts. No empty one gets a place.
    """
    told = f"tsugi seat {replica} {ticket}".encode()
    return hmac.new(secret.encode(), told, hashlib.sha256).hexdigest()[:SEAT_CHARS]


@dataclass(frozen=True)
class Seats:
    """Checks proofs.

    Args:
        places: Who was given which place.
        secret: The hub's.
    """

    slots: Slots
    secret: str

    def holds(self, hello: Hello) -> bool:
        """Whether the place of this replica was given to who says this."""
        # A place that nobody from elsewhere has is the owner's, who alone can make the key without a ticket.
        ticket = self.slots.ticket_of(hello.replica) or ""
        return hmac.compare_digest(hello.seat.encode(), seat_key(self.secret, hello.replica, ticket).encode())
