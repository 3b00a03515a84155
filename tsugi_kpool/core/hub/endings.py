"""How a run ends: finished, interrupted, or failed with the first reason."""

from __future__ import annotations

from tsugi_kpool.core.effects import Effect, FleetStage, Send
from tsugi_kpool.core.events import Aborted
from tsugi_kpool.core.messages import Abort, Drain, Finish, Refused
from tsugi_kpool.core.records import Finished, Interrupted, RunFailed

from .changes import keep
from .checkpoint_orders import order, other_writer
from .state import HubState


def interrupt(state: HubState) -> list[Effect]:
    """The owner wants to stop: nobody starts another step, what is buffered is still aggregated.

    Should the last step of somebody take longer than there is time, the next round's checkpoint is what stays.
    A run that has ended is changed by it no more.
    """
    if state.over or state.stage is FleetStage.FAILED:
        return []
    state.save_wanted = state.plan.checkpoints
    nobody = state.stage is FleetStage.TRAINING and not state.present
    return keep(state, Interrupted(over=nobody)) + [
        Send(member.hello.replica, Drain("interrupted")) for member in state.live()
    ]


def stop_early(state: HubState) -> list[Effect]:
    """As `interrupt`, but nobody asked: the result is evaluated, and the run has finished."""
    return keep(state, Interrupted(early=True)) + [
        Send(member.hello.replica, Drain("stopped early")) for member in state.live()
    ]


def finish_order(state: HubState) -> Finish:
    """The order that ends a run well."""
    wanted = state.stopped_early or not state.interrupted
    return Finish(state.rounds.version, wanted, min(state.present, default=0), other_writer(state))


def finish(state: HubState) -> list[Effect]:
    """Everything is committed."""
    effects = keep(state, Finished())
    if state.plan.checkpoints:
        effects.append(order(state, final=True))
    return effects + [Send(replica, finish_order(state)) for replica in state.present]


def desert(state: HubState) -> list[Effect]:
    """The last replica has been taken back, and the anchors have gone with it: nobody can go on from here."""
    if state.plan.samples and not state.leases.left:  # it had trained on all that there was, and all is committed
        return keep(state, Finished())
    return keep(state, Interrupted(over=True, deserted=True))


def abandon(state: HubState) -> None:
    """The user does not wait until everything is committed: what the last status shows."""
    if state.stage not in (FleetStage.FINISHED, FleetStage.FAILED):
        state.interrupted, state.stage = True, FleetStage.INTERRUPTED


def fail(state: HubState, reason: str, replica: int | None = None, quorum: bool = False) -> list[Effect]:
    """The run cannot go on. The first reason stands; the shell ends the processes."""
    if state.failure is not None:
        return []
    fire = state.rounds.in_flight
    effects: list[Effect] = [Aborted(fire.round, reason)] if fire is not None else []
    effects += keep(state, RunFailed(reason, replica, quorum))
    if fire is not None:
        effects += [Send(member, Abort(fire.generation, fire.round, reason)) for member in fire.members]
    if not state.plan.supervised:
        effects += [Send(member.hello.replica, Refused(reason)) for member in state.live()]
    return effects
