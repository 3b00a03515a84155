"""Whether what a member says of itself, and of a round, can be, given what the hub knows. Pure."""

from __future__ import annotations

from tsugi_kpool.core.messages import (
    Broken,
    Checked,
    Compared,
    Discarded,
    Evaluated,
    Failed,
    Figures,
    Fire,
    LeaseRequest,
    Message,
    Reduced,
    Saved,
    StopFleet,
    Unreached,
    Vitals,
)
from tsugi_kpool.core.messages.bounds import LARGEST, MAX_REASON, MAX_WORD
from tsugi_kpool.core.rounds.statements import DIGEST_BYTES, SIGNATURE_BYTES
from tsugi_kpool.core.rounds.told import TOLD_CHARS, told_of

from .checkpoint_orders import possible
from .evaluating import evaluation_given
from .refusals import Kind
from .state import HubState

MAX_FIGURES = 100
"""Of a reduction that a loop asks for."""
STAGES = ("base", "trained")


def implausible(state: HubState, message: Message) -> Kind | None:
    """Why what a member says cannot be, given what the hub knows; None where it can be."""
    if isinstance(message, Reduced):
        return _reduced(state, message)
    if isinstance(message, Checked):
        return _checked(state, message)
    if isinstance(message, Compared):
        return _compared(state, message)
    if state.members[message.replica].lost is not None:  # type: ignore[attr-defined]
        return None  # its books are closed, so nothing fits them: the hub tells it that it has left
    if isinstance(message, LeaseRequest) and not state.resumed:
        newest = state.leases.newest_ticket(message.replica)
        return Kind.RANGE if message.ticket > newest + 1 else None
    if isinstance(message, Broken):
        return Kind.RANGE if len(message.reason) > MAX_REASON or message.generation > state.generation else None
    if isinstance(message, Unreached):
        return Kind.RANGE if max(len(message.address), len(message.reason)) > MAX_WORD else None
    if isinstance(message, Figures):
        return _figures(message, state.figures.done)
    if isinstance(message, (Discarded, Failed, StopFleet)):
        return Kind.RANGE if len(message.reason) > MAX_REASON else None
    if isinstance(message, Evaluated):
        known = message.stage in STAGES or evaluation_given(state, message.stage, message.replica)
        return None if known else Kind.RANGE
    if isinstance(message, Saved):
        return None if possible(state, message) else Kind.RANGE
    if isinstance(message, Vitals) and min(message.rtt_s or 0.0, message.rtt_usual_s or 0.0) < 0:
        return Kind.RANGE
    return None


def _checked(state: HubState, checked: Checked) -> Kind | None:
    """Who checks names each member at most once, and no stranger."""
    most = state.plan.replicas + state.plan.spare
    known = len(set(checked.wrong)) == len(checked.wrong) and all(each < most for each in checked.wrong)
    return None if known else Kind.RANGE


def _compared(state: HubState, compared: Compared) -> Kind | None:
    """It says something of each member of the round, and of nobody else."""
    comparison = state.rounds.comparison
    if comparison is None or compared.round != comparison.order.round:
        return None  # late
    count = len(comparison.members)
    sizes = (len(compared.digests), len(compared.signatures))
    return None if sizes == (DIGEST_BYTES * count, SIGNATURE_BYTES * count) else Kind.RANGE


def _reduced(state: HubState, reduced: Reduced) -> Kind | None:
    fire = state.rounds.in_flight
    if fire is None or reduced.round != fire.round:
        return Kind.RANGE if reduced.round > state.rounds.number and not state.resumed else None
    if not _whose(state, reduced, fire):
        return Kind.RANGE
    plan = state.plan
    if not plan.samples or not plan.sample_tokens:
        return None
    if reduced.durable > state.leases.held(reduced.replica):
        return Kind.RANGE
    # All but one of a thousand members have none: the rest walks all of them. What an exchange has said of others
    # is voted on, and not its reporter's fault (`quarantine.overclaimed`).
    if not reduced.weights or state.rounds.shared:
        return None
    committed = sum(member.committed_tokens for member in [*state.members.values(), *state.past])
    possible = plan.kpool.n * state.leases.issued * plan.sample_tokens
    return Kind.RANGE if committed + sum(reduced.weights) > possible else None


def _whose(state: HubState, reduced: Reduced, fire: Fire) -> bool:
    """Whether it says as much of each member of its round as it must, and of nobody else."""
    if not state.rounds.shared:
        lists = reduced.counted or reduced.durables or reduced.told
        return len(reduced.weights) in (0, len(fire.members)) and not lists
    counted = reduced.counted
    if not len(reduced.weights) == len(counted) == len(reduced.durables) <= len(fire.members):
        return False
    if not counted:  # all but a few of a thousand members: the rest walks all of them
        return len(reduced.told) == TOLD_CHARS
    if len(set(counted)) < len(counted) or not set(fire.members).issuperset(counted):
        return False
    return reduced.told == told_of(counted, reduced.weights, reduced.durables)


def _figures(message: Figures, done: int) -> Kind | None:
    """Nobody can be further than one reduction, and what everybody gets is small."""
    short = len(message.sums) <= MAX_FIGURES and all(len(name) <= MAX_WORD for name in message.sums)
    largest = max(map(abs, message.sums.values()), default=0.0)
    return None if short and 0 < message.number <= done + 1 and largest <= LARGEST else Kind.RANGE
