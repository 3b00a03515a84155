"""Who is let into a run, and when it is complete."""

from __future__ import annotations

from itertools import zip_longest

from tsugi_kpool.core.effects import Effect, FleetStage, Send
from tsugi_kpool.core.messages import Ack, Hello, Refused
from tsugi_kpool.core.records import Joined

from .changes import keep
from .endings import fail
from .firing import is_first
from .leaving import goodbye, leave
from .orders import open_generation
from .slots import ENDED
from .state import HubState, names

FORM_S = 2.0
"""Members show that they have acted on a Generation as soon as they have; who has not by then need not be alive."""
PARTS = (
    ("adapter pool differs", "another model or version"),
    (
        "prepared data differ",
        "another file, another revision on the hub, another tokenizer, or another version of transformers",
    ),
    ("start values differ", "another lora.from_adapter, another base model"),
)
"""What a layout holds, in its order, and why it may differ."""


def welcome(state: HubState, hello: Hello, now_s: float) -> list[Effect]:
    """Let a replica in, or refuse it, which fails the run; the last one opens the generation."""
    if hello.incarnation in state.fenced:
        return [Send(hello.replica, goodbye(state, hello.replica, state.fenced[hello.incarnation]))]
    known = state.members.get(hello.replica)
    if known is not None and known.hello.incarnation == hello.incarnation:
        return [Send(hello.replica, Ack(hello.seq))]
    reason = refusal(state, hello)
    if reason is not None:
        waited_for = state.stage is FleetStage.GATHERING  # once the run has begun it goes on without this one
        ending = fail(state, f"replica {hello.replica}: {reason}") if waited_for else []
        return [Send(hello.replica, Refused(reason)), *ending]
    effects = [*keep(state, Joined(hello), now_s), Send(hello.replica, Ack(hello.seq))]
    if state.stage is FleetStage.GATHERING and len(state.members) == state.plan.replicas:
        effects += open_generation(state, now_s)
    return effects


def refusal(state: HubState, hello: Hello) -> str | None:
    """Why this replica may not join, or None. What must be equal is checked before any collective."""
    if not 0 <= hello.replica < state.most:
        return f"this run has replicas 0 to {state.most - 1}"
    if state.over or state.stage is FleetStage.FAILED:
        return ENDED
    known = state.members.get(hello.replica)
    if known is not None and known.here:
        return "this replica has already joined; a second process may not take its place"
    if hello.config_hash != state.plan.config_hash:
        return f"its configuration differs ({hello.config_hash[:12]}, not {state.plan.config_hash[:12]})"
    first = next(iter(state.members.values()), None)
    if first is not None and first.hello.layout != hello.layout:
        return _unlike(hello, first.hello) + state.slots.likely(hello.replica)
    return None


def _unlike(hello: Hello, first: Hello) -> str:
    """What differs between two layouts: hashes of the pool, the data and the start values, with colons between."""
    pairs = zip_longest(hello.layout.split(":", 2), first.layout.split(":", 2), fillvalue="")
    for (own, usual), (what, why) in zip(pairs, PARTS, strict=False):
        if own != usual:
            return f"its {what} from replica {first.replica}'s ({own[:12]}, not {usual[:12]}): {why}?"
    return "its layout differs"


def admit(state: HubState, now_s: float) -> list[Effect]:
    """The next generation opens between two rounds, for which the next one waits: with those who have come, and
    without those who have left while a round went on.

    Not before all have voted on the last one: newcomers begin from the anchors of one member, which must be right.
    """
    if state.over and state.waiting:
        return leave(state, dict.fromkeys(sorted(state.waiting), "the run has ended"), now_s)
    rounds, due = state.rounds, state.departed.due or (state.waiting and state.stage is FleetStage.TRAINING)
    if rounds.in_flight or rounds.votes.behind or not due or not state.training or _is_forming(state, now_s):
        return []
    return open_generation(state, now_s)


def _is_forming(state: HubState, now_s: float) -> bool:
    """Whether members are about to act on the present generation. Over an exchange they do not need each other for
    it, so the next one is for all who come or go until then: where somebody does all the time, each of thousands
    would be told of thousands all the time.
    """
    if not state.plan.exchange or now_s - state.opening.at_s > FORM_S:
        return False
    if state.tally.at(state.generation, state.rounds.version) < len(state.present):
        return True
    return is_first(state) and not state.departed.due and state.ready_s is not None  # its round is about to fire


def check_gathering(state: HubState, now_s: float) -> list[Effect]:
    """Begin when the fleet is complete; give up on replicas that have not come in time."""
    if len(state.members) == state.plan.replicas:
        return open_generation(state, now_s)  # the hub before this one died between the last Joined and this
    if now_s - state.started_s <= state.plan.start_timeout_s:
        return []
    missing = sorted(set(range(state.plan.replicas)) - set(state.members))
    setting = "topology.join_timeout_s" if state.plan.joinable else "topology.start_timeout_s"
    return fail(state, f"replica {names(missing)} did not join within {state.plan.start_timeout_s:g} s ({setting})")
