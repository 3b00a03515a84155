"""Liveness and quorum: who is taken for dead, and whether enough replicas are left to train.

Liveness is progress, judged by the hub's own clock. Nobody is judged for being slow. A replica leaves when the others
wait for it (its Reduced is missing, or it has not followed an order that they have) and it has not been heard for
`silent_timeout_s`; when it does not obey the Fire of a round that is overdue; or when its training stands still for
much longer than its own steps take. Below `min_replicas` the run pauses, and after a while it ends.
"""

from __future__ import annotations

from collections.abc import Iterable

from tsugi_kpool.core import events
from tsugi_kpool.core.effects import Effect, FleetStage, HubPlan
from tsugi_kpool.core.events import QuorumBack, QuorumLost
from tsugi_kpool.core.messages import Broken, Unreached
from tsugi_kpool.core.replica.reach import TOO_LARGE, words

from .cut_off import GRACE_S, judges_nobody
from .endings import fail
from .leaving import again, leave
from .members import Member
from .state import HubState, names

BROKEN_S = 2.0
"""After a collective broke, whoever has not been heard for this long is the one whose end broke it."""
STALL_FLOOR_S = 180.0
"""A step may take this long though those before it were quick: compilers, full disks, one long sample."""
STALL_STEPS = 20.0
"""And this many times as long as the replica's steps usually take."""
LAST_S = 30.0
"""Who alone still has data, and has not been heard for this long, keeps nobody waiting any more."""
CUT_S = 4.0
"""Whose connection has closed is given no longer than this, however patient the run is with a busy interpreter."""
GAP_S = 1.0
"""A hub that has not looked for this long was frozen itself; it judges nobody before it has listened again."""
EVERY_S = 0.2
"""All members are looked at this often."""


def look(state: HubState, now_s: float) -> None:
    """The hub looks around. After a gap in its own time everybody gets the time to be heard."""
    if now_s - state.looked_s > GAP_S:
        state.grace_until_s = now_s + GRACE_S
    state.looked_s = now_s


def check(state: HubState, now_s: float) -> list[Effect]:
    """What follows from who has been heard and who has got on."""
    if not state.training or now_s < state.grace_until_s or now_s - state.judged_s < EVERY_S:
        return []
    state.judged_s = now_s
    nobody, told = judges_nobody(state, now_s)
    if nobody:
        return told
    # One verdict a turn: whoever leaves changes what the others wait for.
    return _silent(state, now_s) or _broken(state, now_s) or _overdue(state, now_s) or _stalled(state, now_s)


def broke(state: HubState, message: Broken, now_s: float) -> list[Effect]:
    """A member's collective has failed. The others' do, too, or wait for one that is gone.

    Of a round that is committed it has lost what all others have: it cannot go on.
    """
    behind = state.rounds.votes.behind
    here = (message.generation, message.round)
    if behind is not None and message.replica in behind.awaited and here == behind.key:
        return leave(state, {message.replica: f"it has lost round {message.round}: {message.reason}"}, now_s)
    if message.generation == state.generation and message.replica in state.present:
        if not state.broken:
            state.broken_s = now_s
        state.broken[message.replica] = message.reason
        if not message.round and not state.contact.unformed:
            state.contact.unformed = f"replica {message.replica}: {message.reason}"
    return []


def unreached(state: HubState, message: Unreached) -> list[Effect]:
    """A member does not reach another one of its group; said once for each of them, and not where it does no harm."""
    pair, contact = (message.replica, message.other), state.contact
    if message.generation != state.generation or not set(pair) <= set(state.present) or pair in contact.unreached:
        return []
    if _formed(state) and (message.reason != TOO_LARGE or _commits(state)):
        return []  # one of two has reached the other, and that is enough
    contact.unreached[pair] = words(*pair, message.address, message.reason)
    return [events.Unreached(*pair, message.address, message.reason)]


def _formed(state: HubState) -> bool:
    return all(member.generation == state.generation for member in _present(state))


def _commits(state: HubState) -> bool:
    commit = state.rounds.newest_commit
    return commit is not None and commit.generation == state.generation


def _silent(state: HubState, now_s: float) -> list[Effect]:
    limit_s = state.plan.silent_timeout_s
    if limit_s is None:
        return []
    silent = [
        member
        for member in _present(state)
        if now_s - member.heard_s > limit_s and now_s - member.ordered_s > limit_s and _holds_up(state, member)
    ]
    if silent:
        return leave(state, _reasons(silent, f"silent for {limit_s:g} s"), now_s)
    cut = [each for each in _present(state) if each.cut and now_s - each.heard_s > CUT_S and _holds_up(state, each)]
    if cut:
        return leave(state, _reasons(cut, f"silent for {CUT_S:g} s, and its connection has closed"), now_s)
    last = _last(state, max(limit_s, LAST_S), now_s)
    return leave(state, _reasons(last, f"silent for {max(limit_s, LAST_S):g} s while the others were done"), now_s)


def _last(state: HubState, limit_s: float, now_s: float) -> list[Member]:
    """Those that have not been heard, if all others have trained on their data and wait for the run's end.

    No round is awaited of them, so nothing else tells that they have gone.
    """
    if not state.tally.drained:
        return []
    working = [member for member in _present(state) if not member.drained]
    unheard = [member for member in working if now_s - max(member.heard_s, member.ordered_s) > limit_s]
    return unheard if len(unheard) == len(working) else []


def patient(plan: HubPlan) -> bool:
    """Whether silence alone is given longer than a connection that has closed."""
    return plan.silent_timeout_s is not None and plan.silent_timeout_s > CUT_S


def doubtful(state: HubState, now_s: float) -> list[int]:
    """Members of whom it is worth knowing whether their connection still stands."""
    gathering = state.stage is FleetStage.GATHERING
    if not patient(state.plan) and not gathering:
        return []
    # Before the run begins those from elsewhere are asked about: somebody else may have their seats.
    asked = [each for each in state.members.values() if each.here] if gathering else list(_present(state))
    for member in asked:
        member.cut = member.cut and now_s - member.heard_s > CUT_S
    return [member.hello.replica for member in asked if now_s - member.heard_s > CUT_S]


def connected(state: HubState, replica: int, there: bool) -> None:
    """Whether the connection of a member stands that has not been heard."""
    state.members[replica].cut = not there


def _holds_up(state: HubState, member: Member) -> bool:
    """Whether the others cannot go on without this one."""
    rounds = state.rounds
    if rounds.votes.behind is not None and member.hello.replica in rounds.votes.behind.awaited:
        return True
    if rounds.in_flight is not None:
        return member.hello.replica in rounds.awaited
    return (member.generation, member.version) != (
        state.generation,
        rounds.version,
    ) or state.stage is FleetStage.DRAINING


def _broken(state: HubState, now_s: float) -> list[Effect]:
    """Whose end broke a collective, if the launcher has not said so before; if nobody's, they try again."""
    if not state.broken or now_s - state.broken_s <= BROKEN_S:
        return []
    silent = [member for member in _present(state) if member.heard_s <= state.broken_s]
    if silent:
        return leave(state, _reasons(silent, f"silent for {BROKEN_S:g} s when a collective broke"), now_s)
    replica, reason = next(iter(state.broken.items()))
    return again(
        state, f"the collective of generation {state.generation} broke on replica {replica}: {reason}", now_s
    )


def _overdue(state: HubState, now_s: float) -> list[Effect]:
    missing = state.rounds.missing(now_s)
    if not missing:
        return []
    if rounds_behind := state.rounds.votes.behind:
        return leave(state, dict.fromkeys(missing, f"it did not get round {rounds_behind.fire.round} in time"), now_s)
    number, away = state.rounds.number, [state.members[each] for each in missing]
    if state.rounds.comparison is not None and 2 * len(missing) < len(state.present):
        return leave(state, dict.fromkeys(missing, f"it does not say what it was told in round {number}"), now_s)
    idle = [member for member in away if member.beat is None or member.beat.joined < number]
    if idle and len(idle) < len(state.present):
        return leave(state, _reasons(idle, f"it did not begin round {number} in time"), now_s)
    return again(state, f"round {number} was not reduced on replica {names(missing)} in time", now_s)


def _stalled(state: HubState, now_s: float) -> list[Effect]:
    """Only where the hub leases the data: a loop of the user's own may do something else for an hour."""
    if not state.plan.samples or state.paused_s is not None or state.stage is not FleetStage.TRAINING:
        return []
    if now_s - state.all_advanced_s <= STALL_FLOOR_S:
        return []  # nobody can have stood still for so long
    stalled = [member for member in _present(state) if _stands_still(member, now_s)]
    state.all_advanced_s = min((member.advanced_s for member in _present(state)), default=now_s)
    return leave(state, _reasons(stalled, "its training stands still"), now_s)


def _stands_still(member: Member, now_s: float) -> bool:
    beat = member.beat
    if beat is None or beat.drained or not beat.steps:
        return False  # its first step may have to compile
    usual_s = max(beat.step_s, beat.busy_s / beat.steps)
    return now_s - member.advanced_s > max(STALL_FLOOR_S, STALL_STEPS * usual_s)


def _present(state: HubState) -> Iterable[Member]:
    return (state.members[replica] for replica in state.present)


def _reasons(members: Iterable[Member], why: str) -> dict[int, str]:
    return {member.hello.replica: why for member in members}


def check_quorum(state: HubState, now_s: float) -> list[Effect]:
    """Pause or go on when the number of replicas has changed; give up when the others stay away for too long.

    A paused run fires no round and hands out no data, so replicas stop when they have trained on what they hold.
    """
    if state.stage is not FleetStage.TRAINING or state.interrupted:
        state.paused_s = None
        return []
    live, needed = len(state.present), state.plan.min_replicas
    if not state.lacks_quorum:
        back = state.paused_s is not None
        state.paused_s = None
        return [QuorumBack(live)] if back else []
    timeout_s = state.plan.quorum_timeout_s
    if state.paused_s is None:
        state.paused_s = now_s
        return [QuorumLost(live, needed, timeout_s)] if timeout_s else _give_up(state, live)
    return _give_up(state, live) if now_s - state.paused_s > timeout_s else []


def _give_up(state: HubState, live: int) -> list[Effect]:
    needed, timeout_s = state.plan.min_replicas, state.plan.quorum_timeout_s
    last = f"; the last one to leave was {state.last_left}" if state.last_left else ""
    reason = f"{live} of at least {needed} replicas were left for {timeout_s:g} s (topology.quorum_timeout_s){last}"
    return fail(state, reason, quorum=True)
