"""Who is let into a run, when it is complete, and who has left it without a word."""

from __future__ import annotations

from .changes import keep
from .effects import Effect, Event, Send
from .endings import fail
from .hub_state import HubState, names
from .messages import Ack, Epoch, Hello, Refused
from .records import EpochOpened, Joined


def welcome(state: HubState, hello: Hello, now_s: float) -> list[Effect]:
    """Let a replica in, or refuse it, which fails the run; the last one opens the epoch."""
    known = state.members.get(hello.replica)
    if known is not None and known.hello.incarnation == hello.incarnation:
        return [Send(hello.replica, Ack(hello.seq))]
    reason = refusal(state, hello)
    if reason is not None:
        return [Send(hello.replica, Refused(reason)), *fail(state, f"replica {hello.replica}: {reason}")]
    effects: list[Effect] = [
        keep(state, Joined(hello), now_s),
        Send(hello.replica, Ack(hello.seq)),
        Event("joined", {"replica": hello.replica, "host": hello.host, "pid": hello.pid}),
    ]
    if len(state.members) == state.plan.replicas:
        effects += _open_epoch(state)
    return effects


def refusal(state: HubState, hello: Hello) -> str | None:
    """Why this replica may not join, or None. What must be equal is checked before any collective."""
    if not 0 <= hello.replica < state.plan.replicas:
        return f"this run has replicas 0 to {state.plan.replicas - 1}"
    if hello.replica in state.members:
        return "this replica has already joined; a second process may not take its place"
    if hello.config_hash != state.plan.config_hash:
        return f"its configuration differs ({hello.config_hash[:12]}, not {state.plan.config_hash[:12]})"
    first = next(iter(state.members.values()), None)
    if first is not None and first.hello.layout != hello.layout:
        return f"its adapter pool differs from replica {first.hello.replica}'s (another model or version?)"
    return None


def epoch_order(state: HubState) -> Epoch:
    """The order that forms the present epoch's group."""
    return Epoch(state.epoch, tuple(sorted(state.members)), state.rounds.version, state.rounds.active)


def check_gathering(state: HubState, now_s: float) -> list[Effect]:
    """Begin when the fleet is complete; give up on replicas that have not come in time."""
    if len(state.members) == state.plan.replicas:
        return _open_epoch(state)  # the hub before this one died between the last Joined and this
    if now_s - state.started_s <= state.plan.start_timeout_s:
        return []
    missing = sorted(set(range(state.plan.replicas)) - set(state.members))
    setting = "topology.join_timeout_s" if state.plan.joinable else "topology.start_timeout_s"
    return fail(state, f"replica {names(missing)} did not join within {state.plan.start_timeout_s:g} s ({setting})")


def check_silence(state: HubState, now_s: float) -> list[Effect]:
    """Give up on members that have not been heard for too long."""
    limit_s = state.plan.silent_timeout_s
    if limit_s is None or not state.training:
        return []
    silent = [replica for replica, member in sorted(state.members.items()) if now_s - member.heard_s > limit_s]
    return fail(state, f"replica {names(silent)} has been silent for {limit_s:g} s") if silent else []


def _open_epoch(state: HubState) -> list[Effect]:
    opened = keep(state, EpochOpened(state.epoch + 1, tuple(sorted(state.members))))
    order = epoch_order(state)
    effects: list[Effect] = [opened, Event("epoch", {"epoch": order.epoch, "members": list(order.members)})]
    return effects + [Send(replica, order) for replica in order.members]
