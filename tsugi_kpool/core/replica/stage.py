"""The state machine of a round on one replica: its stages, and what each order does in each of them."""

from __future__ import annotations

from enum import StrEnum

from tsugi_kpool.core.messages import Abort, Broken, Commit, Fire, Generation, Message


class Stage(StrEnum):
    """The stages of a replica between and in rounds."""

    OUTSIDE = "outside"
    """No group yet."""
    IDLE = "idle"
    """In a group, no round in flight."""
    IN_FLIGHT = "in flight"
    """The collective runs."""
    REDUCED = "reduced"
    """The collective has ended here; nothing is applied before the Commit."""


class Action(StrEnum):
    """What a replica does with an order."""

    IGNORE = "ignore"
    FORM = "form"
    COMMIT_THEN_FORM = "commit then form"
    FORGET_THEN_FORM = "forget then form"
    START = "start"
    COMMIT = "commit"
    COMMIT_THEN_START = "commit then start"
    FORGET = "forget"
    FORGET_THEN_START = "forget then start"

    @property
    def forms(self) -> bool:
        return self in (Action.FORM, Action.COMMIT_THEN_FORM, Action.FORGET_THEN_FORM)

    @property
    def commits(self) -> bool:
        return self in (Action.COMMIT, Action.COMMIT_THEN_START, Action.COMMIT_THEN_FORM)

    @property
    def forgets(self) -> bool:
        return self in (Action.FORGET, Action.FORGET_THEN_START, Action.FORGET_THEN_FORM)

    @property
    def starts(self) -> bool:
        return self in (Action.START, Action.COMMIT_THEN_START, Action.FORGET_THEN_START)


def react(stage: Stage, generation: int, round: int, version: int, order: Message) -> Action:
    """Return what to do with an order.

    Orders may be lost, repeated, late or out of order. Only the next expected one does anything. The hub fires
    nothing before the round in flight is decided, and a Fire says how many rounds were committed before it: who has
    reduced a round and missed its Commit or Abort learns from the next Fire or Generation which of the two it was.
    """
    if isinstance(order, Generation):
        return _next_generation(stage, version, order) if order.generation > generation else Action.IGNORE
    if not isinstance(order, (Fire, Commit, Abort)) or order.generation != generation:
        return Action.IGNORE
    if isinstance(order, Fire):
        return _next_round(stage, version, order) if order.round > round else Action.IGNORE
    if order.round != round or stage is not Stage.REDUCED:
        return Action.IGNORE
    return Action.COMMIT if isinstance(order, Commit) else Action.FORGET


def unaware(broken: Broken, order: Message) -> bool:
    """Return whether an order shows that the hub does not know of our `Broken`, and has to be told again.

    It has acknowledged it, but keeps it in memory alone: a hub that took over before the next generation was opened
    repeats the old one, or fires in it, and waits for ever for whoever says nothing.
    """
    return isinstance(order, Generation | Fire) and order.generation == broken.generation


def _next_generation(stage: Stage, version: int, order: Generation) -> Action:
    """Decide a newer Generation. Its version says whether the last round, if it is reduced here, was committed.

    An exchange's may have been committed before it is reduced here, or begun: then that comes first. The hub says its
    Fire and its Commit again, and the Generation. Who has not even heard of the Commit before that one learns of it
    from this Fire.
    """
    if stage in (Stage.IDLE, Stage.IN_FLIGHT) and order.version == version + 1:
        return Action.IGNORE
    if stage is Stage.REDUCED and order.version > version + 1:
        return Action.IGNORE
    if stage is not Stage.REDUCED:
        return Action.FORM
    return Action.COMMIT_THEN_FORM if order.version == version + 1 else Action.FORGET_THEN_FORM


def _next_round(stage: Stage, version: int, fire: Fire) -> Action:
    """Decide a newer Fire. One whose version fits nothing is for members that have committed more; the hub repeats
    it."""
    if fire.version == version:
        return Action.FORGET_THEN_START if stage is Stage.REDUCED else Action.START
    reduced = stage is Stage.REDUCED and fire.version == version + 1
    return Action.COMMIT_THEN_START if reduced else Action.IGNORE
