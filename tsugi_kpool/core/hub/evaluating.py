"""Evaluation while training: who copies the anchors of a committed version, and what follows from what it finds.

Nobody waits for it. A Commit names the evaluator, which copies these anchors and goes through the eval split between
its steps. When it leaves, or may have missed that Commit, a later Commit names another one, for a later version: the
anchors of the earlier one are gone.
"""

from __future__ import annotations

from tsugi_kpool.core.effects import Effect, FleetStage
from tsugi_kpool.core.evaluation import Unit, due, losses, slowest, stage_of, version_in, worse_since
from tsugi_kpool.core.messages import Evaluated
from tsugi_kpool.core.records import Evaluation, EvaluationGiven

from .changes import keep
from .endings import stop_early
from .leasing import samples_trained
from .state import HubState


def assign(state: HubState, now_s: float) -> list[Effect]:
    """A round has just been committed: if an evaluation is due, this version is given to a replica."""
    if not wanted(state, now_s):
        return []
    replica = slowest(_candidates(state))
    if replica is None:
        return []
    if state.plan.keep_best and state.plan.checkpoints:
        state.save_wanted = True
    return keep(state, EvaluationGiven(replica, state.rounds.version, progress(state, now_s)))


def progress(state: HubState, now_s: float) -> float:
    """How far the run has come, in the unit of `evaluate.every`: by what outlives a hub, so that the next one counts
    on."""
    every = state.plan.evaluate
    if every is None:
        return 0.0
    if every.unit is Unit.SECONDS:
        return max(0.0, now_s - state.started_s)
    samples = samples_trained(state)
    return samples / max(1, state.plan.samples if every.unit is Unit.SHARE else state.plan.micro_batch)


def evaluated(state: HubState, message: Evaluated) -> list[Effect]:
    """A replica has evaluated: its share of the whole, or the version that it was given."""
    if (message.stage, message.replica) in state.evaluations:
        return []
    version, given = version_in(message.stage), state.evaluation.given
    if version is None:
        return keep(state, Evaluation(message))
    if given is None or (given.version, given.replica) != (version, message.replica):
        return []  # it was given to another meanwhile
    return [*keep(state, Evaluation(message)), *_stop_early(state)]


def wanted(state: HubState, now_s: float) -> bool:
    """Whether the next committed version is to be evaluated."""
    every = state.plan.evaluate
    if every is None or state.stage is not FleetStage.TRAINING or state.interrupted or not state.rounds.newest_commit:
        return False
    return state.evaluation.given is None and due(every, progress(state, now_s), state.evaluation.at)


def _candidates(state: HubState) -> dict[int, float]:
    """Seconds for each token of the replicas that are there, and have more steps between which they can evaluate."""
    return {
        replica: state.members[replica].rates().seconds_per_token
        for replica in state.present
        if replica not in state.parting and not state.members[replica].drained
    }


def _stop_early(state: HubState) -> list[Effect]:
    patience, known = state.plan.patience, losses(state.evaluations)
    if patience is None or worse_since(list(known.values())) < patience:
        return []
    return [] if state.interrupted or state.stage is not FleetStage.TRAINING else stop_early(state)


def evaluation_given(state: HubState, stage: str, replica: int) -> bool:
    """Whether a replica may say something of this stage: hubs before this one may have asked for it."""
    version = version_in(stage)
    return version is not None and version <= state.rounds.version and stage == stage_of(version) and replica >= 0
