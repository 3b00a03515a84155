"""Whose numbers cannot be: such a replica is put in quarantine by name, with a reason, and the others go on.

Six things lead there. A replica that has found what it buffered to be no numbers, or absurd ones, three times in a
row without a sound contribution in between: it discards them itself and begins again from the anchors, and says so.
A part of a round that all members find to be unusable. More weight than there can be in the samples that it was
handed. Anchors that differ from those of most of the others. A shard of a two-stage round that most find to be
summed wrong (`owner_check`). And something else told to one member of such a round than to the others
(`comparison`). The process is fenced; whoever started it does not start it again by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from tsugi_kpool.core.effects import Effect, Send
from tsugi_kpool.core.messages import Ack, Check, Checked, Compared, Discarded, Reduced
from tsugi_kpool.core.records import Struck

from .changes import keep
from .committing import commit_reduced
from .comparing import comparison_of, disputants, findings, has_owners, in_dispute
from .comparison import Comparison
from .endings import fail
from .leaving import QUARANTINED, abort, again, goodbye, leave
from .orders import open_generation, order
from .owner_check import drawn, finding
from .slot_requests import give_back
from .state import HubState, names

DISAGREED = "gave different anchors"
"""In the reason of a run that has failed because nobody knows whose anchors are right."""
STRIKES = 3
"""Two may be a bad sample, or a learning rate that is a little too high; at the third the cause is the replica."""


def odd_ones(said: Mapping[int, str]) -> tuple[int, ...] | None:
    """Who says something else than most; None when there is nothing that more than half of them say.

    Args:
        said: What each member says, its digest.
    """
    (common, count), *_ = Counter(said.values()).most_common(1)
    return tuple(sorted(each for each, word in said.items() if word != common)) if 2 * count > len(said) else None


def settle(state: HubState, now_s: float) -> list[Effect]:
    """The round in flight has been reduced everywhere: commit it, or go on without those with whom it cannot be."""
    rounds = state.rounds
    if rounds.comparison is not None:
        return _judge_comparison(state, rounds.comparison, now_s)
    if rounds.check is not None:
        return _judge(state, rounds.check, now_s)
    if rounds.agreed:
        if over := overclaimed(state):
            return _without(state, over, now_s)
        check = _drawn(state)
        return commit_reduced(state, now_s) if check is None else _look_at(state, check, now_s)
    if rounds.unreported:
        return again(state, f"those who knew whose parts are in round {rounds.number} have gone", now_s)
    digests = rounds.reports.digests()
    if len(set(digests.values())) > 1 and (comparison := comparison_of(state, now_s)):
        rounds.comparison = comparison
        return order(state, comparison.order, now_s)
    return _by_digests(state, digests, now_s)


def _by_digests(state: HubState, digests: Mapping[int, str], now_s: float) -> list[Effect]:
    """Go on without those whose digests are not the usual one, or whose parts are unusable."""
    rounds, odd = state.rounds, odd_ones(digests)
    if odd is None:
        return fail(state, f"round {rounds.number} {DISAGREED} ({_in_words(digests)}); nothing of it was applied")
    if odd:
        return expel(state, _differ(rounds.number, digests, odd), now_s)
    # All digests are equal here, so all members blame the same ones: the digest of an unusable round names their
    # ranks. But of a two-stage round it is one owner's word, which the others can read and have not seen.
    if rounds.reports.blamer is not None and len(digests) > 1:
        return _look_at(state, _by_all(state, rounds.reports.blamer), now_s)
    return _expel_unusable(state, now_s)


def check_votes(state: HubState, now_s: float) -> list[Effect]:
    """All have voted on the round that was committed last, and not alike: who differs from most leaves."""
    behind = state.rounds.votes.behind
    if behind is None or behind.awaited:
        return []
    odd, number = odd_ones(behind.said), behind.fire.round
    if odd is None:
        return fail(state, f"round {number}, which was committed, {DISAGREED} ({_in_words(behind.said)})")
    return expel(state, _differ(number, behind.said, odd), now_s)


def _differ(number: int, digests: Mapping[int, str], odd: Collection[int]) -> dict[int, str]:
    why = f"the anchors of round {number} differ from those of the other {len(digests) - len(odd)} replicas"
    return {each: f"{why} ({digests[each][:12]})" for each in odd}


def checked(state: HubState, message: Checked, now_s: float) -> list[Effect]:
    """A member has done its part of the check of an owner."""
    state.rounds.on_checked(message)
    acknowledged: Effect = Send(message.replica, Ack(message.seq))
    return [acknowledged, *(settle(state, now_s) if state.rounds.check is not None else [])]


def compared(state: HubState, message: Compared, now_s: float) -> list[Effect]:
    """A member says what it has been told in a round that has not come out alike."""
    comparison = state.rounds.comparison
    if comparison is not None:
        comparison.take(message)
    acknowledged: Effect = Send(message.replica, Ack(message.seq))
    return [acknowledged, *([] if comparison is None else settle(state, now_s))]


def _judge_comparison(state: HubState, comparison: Comparison, now_s: float) -> list[Effect]:
    """Go on as the comparison says, once all have said what they were told."""
    if comparison.awaited:
        return []
    digests, found = state.rounds.reports.digests(), findings(state, comparison)
    if not found.proven and not found.disputes:
        return _by_digests(state, digests, now_s)
    # Nobody leaves for an odd digest here: what it says may follow from what it was told. Who is odd by itself is odd
    # in the next round, too.
    state.disputes.settle(found.proven)
    reasons = found.proven or disputants(state, found)
    if not reasons:
        return abort(state, in_dispute(state, found)) + open_generation(state, now_s)
    if len(reasons) == len(state.present):
        why = in_dispute(state, found) if found.disputes else f"all members of round {state.rounds.number} are wrong"
        return fail(state, f"{why}; nothing of it was applied")
    return expel(state, reasons, now_s)


def _drawn(state: HubState) -> Check | None:
    fire = state.rounds.in_flight
    if fire is None or not has_owners(state, len(fire.members)):
        return None
    return drawn(state.rounds.lottery, fire.generation, fire.round, fire.members)


def _by_all(state: HubState, owner: int) -> Check:
    return Check(state.generation, state.rounds.number, owner, state.present)


def _look_at(state: HubState, check: Check, now_s: float) -> list[Effect]:
    state.rounds.open_check(check, now_s)
    return order(state, check, now_s)


def _judge(state: HubState, check: Check, now_s: float) -> list[Effect]:
    """Go on as the check of an owner says, once all have done their part."""
    rounds = state.rounds
    if rounds.awaited:
        return []
    found = finding(check, rounds.checked)
    if found.clear:
        return _expel_unusable(state, now_s) if rounds.reports.unusable() else commit_reduced(state, now_s)
    if len(check.checkers) < len(state.present):
        return _look_at(state, _by_all(state, check.owner), now_s)
    if found.convicted:
        why = f"what it has sent in round {rounds.number} is not what it had promised, or not the mean of the parts"
        return expel(state, dict.fromkeys(found.convicted, why), now_s)
    if 2 * len(found.accusers) < len(state.present):
        why = f"it says that replica {check.owner} has summed round {rounds.number} wrong, and most others do not"
        return expel(state, dict.fromkeys(found.accusers, why), now_s)
    return fail(
        state,
        f"replicas {names([*found.accusers])} say that replica {check.owner} has summed round "
        f"{rounds.number} wrong, and as many do not; nothing of it was applied",
    )


def _expel_unusable(state: HubState, now_s: float) -> list[Effect]:
    why = f"its part of round {state.rounds.number} is no numbers, or has a weight that cannot be"
    return _without(state, dict.fromkeys(state.rounds.reports.unusable(), why), now_s)


def discarded(state: HubState, message: Discarded, now_s: float) -> list[Effect]:
    """A replica has thrown away what it had buffered, because it was unusable."""
    replica = message.replica
    effects = [*keep(state, Struck(replica, message.reason, message.tokens)), Send(replica, Ack(message.seq))]
    strikes = state.strikes[replica]
    if strikes < STRIKES:
        return effects
    return effects + expel(state, {replica: f"{strikes} times in a row: {message.reason}"}, now_s)


def overweight(state: HubState, reduced: Reduced, now_s: float) -> list[Effect]:
    """Nobody ships more weight than the samples that it was handed can have."""
    plan = state.plan
    if not plan.samples or not plan.sample_tokens:
        return []
    member = state.members[reduced.replica]
    possible = plan.kpool.n * state.leases.held(reduced.replica) * plan.sample_tokens
    claimed = member.committed_tokens + reduced.weight
    if claimed <= possible:
        return []
    return expel(state, {reduced.replica: f"it ships {claimed} tokens where there can be {possible}"}, now_s)


def overclaimed(state: HubState) -> dict[int, str]:
    """Whose parts of the agreed round claim more than there can be in the samples that they were handed, and why.

    Over an exchange a few members report what all parts say. So it is asked here, of whom the parts are.
    """
    plan, rounds = state.plan, state.rounds
    if not plan.samples or not rounds.shared:
        return {}
    weights, found = rounds.weights(), {}
    for replica, durable in rounds.durable().items():
        handed = state.leases.handed(replica)
        member = state.departed.members.get(replica) or state.members[replica]
        claimed, possible = member.committed_tokens + weights[replica], plan.kpool.n * handed * plan.sample_tokens
        if durable > handed:
            found[replica] = f"it says that {durable} of its samples are durable, and was handed {handed}"
        elif plan.sample_tokens and claimed > possible:
            found[replica] = f"it ships {claimed} tokens where there can be {possible}"
    return found


def _without(state: HubState, reasons: Mapping[int, str], now_s: float) -> list[Effect]:
    """Nothing of a round counts with parts that cannot be. Whoever gave one leaves, if it is still there; a process
    that has come in its place has given none.
    """
    here = {replica: why for replica, why in reasons.items() if replica not in state.departed.members}
    if here:
        return expel(state, here, now_s)
    replica, why = next(iter(reasons.items()))
    return again(state, f"replica {replica}, which has left: {why}", now_s)


def expel(state: HubState, reasons: Mapping[int, str], now_s: float) -> list[Effect]:
    """These replicas take no part any more; what they held and is not durable goes to others."""
    named = {replica: f"{QUARANTINED}{why}" for replica, why in reasons.items()}
    effects: list[Effect] = []
    for replica, why in list(named.items()):  # before the run begins somebody else takes its place
        if freed := give_back(state, replica, why):
            effects += [*freed, Send(replica, goodbye(state, replica, named.pop(replica)))]
    return effects + leave(state, named, now_s, quarantined=True)


def _in_words(digests: Mapping[int, str]) -> str:
    return ", ".join(f"replica {replica}: {digest[:12]}" for replica, digest in sorted(digests.items()))
