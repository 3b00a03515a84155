"""A member's answer to the check of an owner of a two-stage round: given once, and said again when asked again."""

from __future__ import annotations

from tsugi_kpool.core.messages import Check, Checked
from tsugi_kpool.core.replica.orders import CANNOT_BE
from tsugi_kpool.errors import LaunchError

from .reducing import Reducer, Traffic


class OwnerCheck:
    """Remembers the newest check and what it has found. Belongs to the aggregator's thread, as the reducer does."""

    def __init__(self) -> None:
        self._newest: tuple[int, int, tuple[int, ...]] | None = None
        """The newest check that we took part in: round, owner, checkers."""
        self._found: Checked | None = None
        """What it has found."""

    def take_part(
        self, order: Check, members: tuple[int, ...], reducer: Reducer
    ) -> tuple[Checked | None, Traffic | None]:
        """Take part in a check of the round in flight. One that has been done already is not repeated; what it has
        found is said again: to a hub that began anew meanwhile, it is news.

        Args:
            order: Names owner and checkers.
            members: Of the generation, by rank.
            reducer: Has the round's evidence.

        Returns:
            What to report, if there is anything; and what it took, if anything was sent.

        Raises:
            CollectiveError: a member has gone, or does not answer in time.
            LaunchError: the order names who is no member.
        """
        check = (order.round, order.owner, order.checkers)
        if check == self._newest:
            return self._found, None
        self._newest, self._found = check, None
        if not {order.owner, *order.checkers}.issubset(members):
            raise LaunchError(CANNOT_BE.format(f"a check of replica {order.owner} that names who is no member"))
        rank_of = {member: rank for rank, member in enumerate(members)}
        found, traffic = reducer.check(rank_of[order.owner], tuple(rank_of[each] for each in order.checkers))
        wrong = tuple(members[rank] for rank in found)
        checkers = len(order.checkers)
        self._found = Checked(0, 0, "", order.generation, order.round, order.owner, checkers, wrong)
        return self._found, traffic
