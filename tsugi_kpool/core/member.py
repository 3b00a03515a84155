"""The life of a round on one replica: stages, and which order moves it from where to where."""

from __future__ import annotations

from enum import StrEnum

from .messages import Abort, Commit, Epoch, Fire, Message


class Stage(StrEnum):
    """Where this replica is in the hub's order of rounds."""

    OUTSIDE = "outside"
    """No group yet."""
    IDLE = "idle"
    """In a group, no round in flight."""
    IN_FLIGHT = "in flight"
    """The collective runs."""
    LANDED = "landed"
    """The collective has ended here; nothing is applied before the Commit."""


class Action(StrEnum):
    """What an order makes this replica do."""

    IGNORE = "ignore"
    FORM = "form"
    START = "start"
    COMMIT = "commit"
    COMMIT_THEN_START = "commit then start"
    FORGET = "forget"


def react(stage: Stage, epoch: int, round: int, order: Message) -> Action:
    """Say what to do with an order, given the stage, the own epoch and the newest round known here.

    Orders may be lost, repeated, late or out of order. Only the next expected one does anything; a Fire for the
    next round implies the Commit of this one, because the hub fires nothing before it has committed.
    """
    if isinstance(order, Epoch):
        return Action.FORM if order.epoch > epoch else Action.IGNORE
    if not isinstance(order, Fire | Commit | Abort) or order.epoch != epoch:
        return Action.IGNORE
    if isinstance(order, Fire):
        if order.round <= round:
            return Action.IGNORE
        return Action.COMMIT_THEN_START if stage is Stage.LANDED else Action.START
    if order.round != round or stage is not Stage.LANDED:
        return Action.IGNORE
    return Action.COMMIT if isinstance(order, Commit) else Action.FORGET
