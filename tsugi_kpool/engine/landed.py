"""What a member tells the hub of a round that has landed here."""

from __future__ import annotations

from tsugi_kpool.core.ledger import Shipment
from tsugi_kpool.core.messages import Fire, Landed

from .rounds import Outcome, Spoilt


def landed(
    fire: Fire,
    shipment: Shipment,
    outcome: Outcome | Spoilt,
    payload_bytes: int,
    took_s: tuple[float, float],
    first: bool,
) -> Landed:
    """The report; what all members would say alike is said by the first one.

    Args:
        fire: The round's order.
        shipment: Ours.
        outcome: What the round has given.
        payload_bytes: That we have shipped.
        took_s: The whole round, and the collective in it.
        first: Whether we are the round's first member.
    """
    usable = isinstance(outcome, Outcome)
    norm2, trace = outcome.noise if isinstance(outcome, Outcome) else (0.0, 0.0)
    weights = outcome.weights if isinstance(outcome, Outcome) else (0,) * outcome.members
    return Landed(
        seq=0,
        replica=0,
        incarnation="",
        epoch=fire.epoch,
        round=fire.round,
        digest=outcome.digest,
        seconds=took_s[0],
        payload_bytes=payload_bytes,
        weights=weights if first else (),
        noise_norm2=norm2,
        noise_trace=trace,
        gather_s=took_s[1],
        adapters=outcome.adapters if first and isinstance(outcome, Outcome) else (),
        durable=shipment.durable if usable else 0,
        weight=sum(shipment.tokens),
        spoilt=() if isinstance(outcome, Outcome) else tuple(fire.members[rank] for rank in outcome.ranks),
    )
