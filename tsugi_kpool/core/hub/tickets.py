"""What shows the exchange that the hub has ordered a round, or a donor, and the hub what the exchange has made of it.

Members pass it on: the two never speak to each other.

As the proof of a place (core.hub.seats) it is made of the hub's secret, which the exchange has, too. Nothing of it
needs to be written down: another hub of the same run makes the same.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from tsugi_kpool.core.messages import Fire, Generation, Message

TICKET_CHARS = 32
"""128 bits in hexadecimal."""


@dataclass(frozen=True)
class Tickets:
    """Makes and checks the tickets of a run.

    Args:
        run: Its name: runs may share a key file.
        secret: The hub's; empty where there is no exchange.
    """

    run: str = ""
    secret: str = ""

    def of_round(
        self,
        generation: int,
        round: int,
        version: int,
        adapters: Sequence[int],
        members: Sequence[int],
        shared: int | None,
    ) -> str:
        """Return what shows that this round of these members was fired, and which round before it counts."""
        return self._made("round", generation, round, version, list(adapters), list(members), shared)

    def of_donor(self, generation: int, donor: int) -> str:
        """Return what shows that this member gives the state to newcomers of this generation."""
        return self._made("donor", generation, donor)

    def of_result(self, generation: int, round: int, told: str) -> str:
        """Return the receipt that shows what the exchange says of a result that is on its disk (core.rounds.told)."""
        return self._made("result", generation, round, told)

    def is_(self, shown: str, ticket: str) -> bool:
        """Return whether what somebody shows is this ticket."""
        return hmac.compare_digest(shown.encode(), ticket.encode())

    def put(self, message: Message) -> Message:
        """Return an order as it is sent: with its ticket, where there is an exchange."""
        if not self.secret:
            return message
        if type(message) is Fire:
            named = (message.generation, message.round, message.version, message.adapters, message.members)
            return msgspec.structs.replace(message, ticket=self.of_round(*named, message.shared))
        if type(message) is Generation and message.newcomers:
            return msgspec.structs.replace(message, ticket=self.of_donor(message.generation, message.donor))
        return message

    def _made(self, *words: object) -> str:
        told = msgspec.json.encode(["tsugi exchange", self.run, *words])
        return hmac.new(self.secret.encode(), told, hashlib.sha256).hexdigest()[:TICKET_CHARS]
