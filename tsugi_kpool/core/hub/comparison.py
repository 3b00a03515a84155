"""A two-stage round that has not come out alike: who has told somebody else something other than the rest.

Every member says what it has got of each other one, as a digest with the signature that came with it. Two statements
of one round that the same key has signed are proof, whoever shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tsugi_kpool.core.messages import Compare, Compared
from tsugi_kpool.core.rounds.statements import DIGEST_BYTES, SIGNATURE_BYTES, Verify, statement

MOST_COMPARED = 600
"""With more members the answers do not fit into a frame, and who differs from most leaves unheard."""
TWO = "it has signed two different things in round {round}, for different members"
NONE = "it shows no signature of what it has told the others in round {round}"


@dataclass(frozen=True)
class Findings:
    """What follows from what the members have shown."""

    proven: dict[int, str] = field(default_factory=dict)
    """Who is wrong, and why: nobody need be believed for it."""
    disputes: tuple[tuple[int, int], ...] = ()
    """(who says that it was told something else, by whom), where nobody can prove it."""


@dataclass
class Comparison:
    """What the members of a round have got of each other, as far as they have said so."""

    order: Compare
    members: tuple[int, ...]
    since_s: float
    said: dict[int, Compared] = field(default_factory=dict)

    @property
    def awaited(self) -> set[int]:
        """Members that have not said it."""
        return set(self.members) - set(self.said)

    def take(self, compared: Compared) -> None:
        """A member has said it; the first time counts, and only if it is of this round and of all members."""
        count = len(self.members)
        fits = len(compared.digests) == DIGEST_BYTES * count and len(compared.signatures) == SIGNATURE_BYTES * count
        here = (compared.generation, compared.round) == (self.order.generation, self.order.round)
        if here and fits and compared.replica in self.members:
            self.said.setdefault(compared.replica, compared)

    def found(self, keys: Mapping[int, bytes], verify: Verify) -> Findings:
        """Return what follows, once all have said it.

        Args:
            keys: Each member's public key; empty where it has none.
            verify: Checks a signature. Asked only of what differs.
        """
        proven: dict[int, str] = {}
        disputes: list[tuple[int, int]] = []
        for place, sender in enumerate(self.members):
            shown = {member: _shown(said, place) for member, said in self.said.items()}
            own = shown[sender][0]
            apart = [member for member in self.members if shown[member][0] != own]
            if not apart:
                continue
            signed = self._signed(set(shown.values()), keys.get(sender, b""), verify)
            if len(signed) > 1:
                proven[sender] = TWO.format(round=self.order.round)
            elif keys.get(sender) and own not in signed:
                proven[sender] = NONE.format(round=self.order.round)
            else:
                disputes += [(member, sender) for member in apart]
        return Findings(proven, tuple(disputes))

    def _signed(self, shown: set[tuple[bytes, bytes]], key: bytes, verify: Verify) -> set[bytes]:
        """The digests that this key has signed."""
        about = (self.order.generation, self.order.round)
        return {digest for digest, by in shown if key and verify(key, by, statement(*about, digest))}


def _shown(said: Compared, place: int) -> tuple[bytes, bytes]:
    digest = said.digests[DIGEST_BYTES * place : DIGEST_BYTES * (place + 1)]
    return digest, said.signatures[SIGNATURE_BYTES * place : SIGNATURE_BYTES * (place + 1)]
