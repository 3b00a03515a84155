"""A two-stage round that has not come out alike: who has told somebody something else leaves, and no other one."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import count

import msgspec
import pytest

from tests.unit.test_quarantine import Table
from tsugi_kpool.core.effects import FleetStage, Send
from tsugi_kpool.core.events import Aborted
from tsugi_kpool.core.hub import comparing
from tsugi_kpool.core.hub.disputes import Disputes
from tsugi_kpool.core.hub.guard import Guard
from tsugi_kpool.core.hub.refusals import Kind
from tsugi_kpool.core.messages import Abort, Commit, Compare, Compared, Fire, Generation, Hello, decode, encode
from tsugi_kpool.core.rounds.statements import UNSIGNED, digest_of, statement
from tsugi_kpool.core.settings import Reduce
from tsugi_kpool.sideband.signing import Signer, verified

LIAR, VICTIM = 2, 0


@dataclass
class Sender:
    """What a member has told one other: the digest, and the signature that came with it."""

    digest: bytes
    signature: bytes


class Scattered(Table):
    """A hub whose members sign what they tell each other; lies are told by `tell`."""

    def __init__(self, replicas: int = 5, keys: bool = True) -> None:
        super().__init__(replicas)
        self.hub.plan = replace(self.hub.plan, kpool=replace(self.hub.plan.kpool, reduce=Reduce.SCATTER))
        self.hub.rounds.verify = verified
        self.signers = [Signer() for _ in range(replicas)]
        for replica, signer in enumerate(self.signers):
            member = self.hub.members[replica]
            member.hello = msgspec.structs.replace(member.hello, key=signer.key if keys else b"")
        self.told: dict[tuple[int, int], Sender] = {}
        """(by whom, to whom) -> what, in the present round."""

    def signed(self, fire: Fire, sender: int, what: str, by: int | None = None) -> Sender:
        signer = self.signers[sender if by is None else by]
        digest = digest_of([what.encode()])
        return Sender(digest, signer._private.sign(statement(fire.generation, fire.round, digest)))

    def began(self) -> Fire:
        """A round has been fired, and all have told all others the truth."""
        fire = self.fire()
        for sender in fire.members:
            said = self.signed(fire, sender, f"the mean of {sender}")
            self.told.update({(sender, to): said for to in fire.members})
        return fire

    def reduced(self, fire: Fire, *different: int) -> list:
        """All have reduced it; these members have another digest."""
        effects = []
        for replica in fire.members:
            effects += self.reduce(fire, replica, f"other {replica}" if replica in different else "same")
        return effects

    def says(self, fire: Fire, replica: int) -> list:
        told = [self.told[sender, replica] for sender in fire.members]
        digests, signatures = b"".join(each.digest for each in told), b"".join(each.signature for each in told)
        said = Compared(9, replica, f"i{replica}", fire.generation, fire.round, digests, signatures)
        assert Guard(self.hub).verdict(said, replica) is None
        return self.hub.receive(said, self.now_s)

    def compared(self, fire: Fire, *different: int) -> list:
        """The hub asks, and all answer."""
        asked = self.orders(self.reduced(fire, *different), Compare)
        assert asked == [Compare(fire.generation, fire.round)] * len(fire.members)
        effects = []
        for replica in fire.members:
            effects += self.says(fire, replica)
        return effects

    def goes_on(self, effects: list) -> None:
        """Another generation has been opened."""
        (members,) = {each.members for each in self.orders(effects, Generation)}
        self.present, self.generation = list(members), self.generation + 1

    def left(self, effects: list) -> dict[int, str]:
        return {each["replica"]: each["reason"] for each in self.told_of(effects)}

    def told_of(self, effects: list) -> list:
        return Table.told(effects, "left")


def test_a_round_that_comes_out_alike_is_not_compared():
    table = Scattered()
    table.hub.rounds.verify = None
    fire = table.began()
    assert len(table.orders(table.reduced(fire), Commit)) == 5
    assert table.hub.rounds.version == 1


@pytest.mark.parametrize("victims", [(0,), (0, 1), (0, 1, 3, 4)])
def test_who_has_signed_two_things_leaves_alone_whoever_was_told_the_other_one(victims):
    table = Scattered()
    fire = table.began()
    for victim in victims:
        table.told[LIAR, victim] = table.signed(fire, LIAR, "another mean")
    effects = table.compared(fire, *victims)
    (left,) = table.left(effects).items()
    assert left == (LIAR, "quarantined: it has signed two different things in round 1, for different members")
    assert {each.round for each in table.orders(effects, Abort)} == {1}
    assert {each.members for each in table.orders(effects, Generation)} == {(0, 1, 3, 4)}
    assert LIAR in table.hub.quarantined
    assert table.hub.rounds.version == 0, "nothing of it was applied"


def test_two_halves_that_were_told_different_things_are_no_reason_to_end_the_run():
    table = Scattered(4)
    fire = table.began()
    for victim in (0, 1):
        table.told[LIAR, victim] = table.signed(fire, LIAR, "another mean")
    for replica in fire.members:
        effects = table.reduce(fire, replica, "one" if replica in (0, 1) else "another")
    assert table.orders(effects, Compare)
    said = [each for replica in fire.members for each in table.says(fire, replica)]
    assert list(table.left(said)) == [LIAR]


@pytest.mark.parametrize("signs", [True, False])
def test_the_only_one_that_was_told_what_the_owner_says_stays(signs):
    """Its digest is the odd one; the owner shows the hub what it has told that one, and has told all others else."""
    table = Scattered()
    fire = table.began()
    for victim in (1, 3, 4):
        table.told[LIAR, victim] = table.signed(fire, LIAR, "another mean", by=None if signs else VICTIM)
    assert list(table.left(table.compared(fire, VICTIM))) == [LIAR]


def test_an_accomplice_that_shows_what_the_victim_was_told_does_not_make_that_one_leave():
    table = Scattered()
    fire = table.began()
    for member in (VICTIM, 4):
        table.told[LIAR, member] = table.signed(fire, LIAR, "another mean")
    assert list(table.left(table.compared(fire, VICTIM))) == [LIAR]


def garbage(table: Scattered, fire: Fire) -> Sender:
    return Sender(digest_of([b"another mean"]), b"\7" * 64)


def of_another_round(table: Scattered, fire: Fire) -> Sender:
    """What the liar has really signed, of the round before."""
    return table.signed(msgspec.structs.replace(fire, round=fire.round + 7), LIAR, "another mean")


def of_another_generation(table: Scattered, fire: Fire) -> Sender:
    return table.signed(msgspec.structs.replace(fire, generation=fire.generation + 1), LIAR, "another mean")


def by_the_victim(table: Scattered, fire: Fire) -> Sender:
    return table.signed(fire, LIAR, "another mean", by=VICTIM)


def true_signature(table: Scattered, fire: Fire) -> Sender:
    """Another mean, with the signature of the true one."""
    return Sender(digest_of([b"another mean"]), table.told[LIAR, 1].signature)


@pytest.mark.parametrize(
    "unproven", [garbage, of_another_round, of_another_generation, by_the_victim, true_signature]
)
def test_what_nobody_can_prove_costs_nobody_the_place_the_first_time(unproven):
    """An owner that knows the rule gives the one that it deceives no signature. A member that lies says the same."""
    table = Scattered()
    fire = table.began()
    table.told[LIAR, VICTIM] = unproven(table, fire)
    effects = table.compared(fire, VICTIM)
    assert not table.left(effects)
    (aborted,) = [each for each in effects if isinstance(each, Aborted)]
    assert f"replica {VICTIM} says this of replica {LIAR}" in aborted.reason
    table.goes_on(effects)
    assert table.present == [0, 1, 2, 3, 4]
    fire = table.began()
    table.reduced(fire)
    assert table.hub.rounds.version == 1, "and the round is tried again"


def disputed(table: Scattered, *pairs: tuple[int, int]) -> dict[int, str]:
    """A round in which each first one says that the second has told it something else; returns who leaves."""
    fire = table.began()
    for accuser, owner in pairs:
        table.told[owner, accuser] = garbage(table, fire)
    effects = table.compared(fire, *{accuser for accuser, _ in pairs})
    table.goes_on(effects)
    return table.left(effects)


def test_an_owner_that_deceives_a_second_member_leaves_alone():
    table = Scattered()
    assert not disputed(table, (0, LIAR))
    assert list(disputed(table, (3, LIAR))) == [LIAR]


def test_an_owner_that_deceives_several_at_once_leaves_alone():
    assert list(disputed(Scattered(), (0, LIAR), (3, LIAR))) == [LIAR]


def test_a_member_that_accuses_a_second_owner_leaves_alone():
    table = Scattered()
    assert not disputed(table, (LIAR, 0))
    assert list(disputed(table, (LIAR, 3))) == [LIAR]
    assert list(disputed(Scattered(), (LIAR, 0), (LIAR, 3))) == [LIAR]


def test_the_same_two_leave_the_second_time_because_one_of_them_lies():
    table = Scattered()
    assert not disputed(table, (0, LIAR))
    assert sorted(disputed(table, (0, LIAR))) == [0, LIAR]
    assert not disputed(table, (1, 3)), "and others' disputes are theirs"


def test_of_two_that_are_alone_the_run_ends_with_both_names():
    table = Scattered(2)
    assert not disputed(table, (0, 1))
    fire = table.began()
    table.told[1, 0] = garbage(table, fire)
    table.compared(fire, 0)
    assert table.hub.stage is FleetStage.FAILED
    assert "replica 0 says this of replica 1" in (table.hub.failure or "")


def test_who_differs_although_it_was_told_the_same_leaves():
    table = Scattered()
    effects = table.compared(table.began(), LIAR)
    ((replica, reason),) = table.left(effects).items()
    assert replica == LIAR
    assert "differ from those of the other 4 replicas" in reason


def test_who_differs_while_somebody_else_lies_leaves_in_the_next_round():
    """What it says may follow from what it was told; who is odd by itself is odd again."""
    table = Scattered()
    fire = table.began()
    table.told[LIAR, VICTIM] = table.signed(fire, LIAR, "another mean")
    effects = table.compared(fire, VICTIM, 4)
    assert list(table.left(effects)) == [LIAR]
    table.goes_on(effects)
    assert list(table.left(table.compared(table.began(), 4))) == [4]


def test_an_owner_with_an_accomplice_takes_nobody_of_five_along():
    """The two show what the deceived one was told, and vote as the others: it stands alone with its digest."""
    table = Scattered()
    fire = table.began()
    for to in (VICTIM, 4):
        table.told[LIAR, to] = table.signed(fire, LIAR, "another mean")
    assert list(table.left(table.compared(fire, VICTIM))) == [LIAR]


def test_a_lone_owner_of_three_takes_nobody_along():
    table = Scattered(3)
    fire = table.began()
    for to in fire.members:
        if to != 0:
            table.told[1, to] = Sender(table.signed(fire, 1, "another mean").digest, UNSIGNED)
    assert list(table.left(table.compared(fire, 0))) != [0]


def test_two_that_work_together_take_none_along():
    """An owner that signs a second thing for its accomplice proves its own lie, and nothing of others."""
    table = Scattered()
    fire = table.began()
    table.told[LIAR, 4] = table.signed(fire, LIAR, "another mean")
    assert list(table.left(table.compared(fire, 4))) == [LIAR]


def test_who_does_not_show_its_own_signature_leaves():
    table = Scattered()
    fire = table.began()
    for to in fire.members:
        table.told[LIAR, to] = Sender(table.told[LIAR, to].digest, UNSIGNED)
    table.told[LIAR, VICTIM] = garbage(table, fire)
    ((replica, reason),) = table.left(table.compared(fire, VICTIM)).items()
    assert replica == LIAR
    assert "it shows no signature of what it has told the others" in reason


def test_who_has_no_key_cannot_be_proven_wrong_but_disputes_like_others():
    table = Scattered(keys=False)
    fire = table.began()
    table.told[LIAR, VICTIM] = table.signed(fire, LIAR, "another mean")
    effects = table.compared(fire, VICTIM)
    assert not table.left(effects)
    table.goes_on(effects)
    assert list(disputed(table, (3, LIAR))) == [LIAR]


def test_a_machine_whose_process_is_started_again_keeps_its_disputes():
    """It would take one honest member after the other along."""
    table = Scattered()
    disputed(table, (0, LIAR))
    table.goes_on(table.hub.leave({LIAR: "killed"}, table.now_s))
    hello = Hello(0, LIAR, "another process", "host", 1, "c0ffee", "layout", key=Signer().key)
    table.hub.receive(hello, table.now_s)
    assert table.hub.disputes.add([frozenset((LIAR, 3))]) == {LIAR}


def test_who_has_left_for_it_leaves_no_mark_on_others():
    book = Disputes()
    assert not book.add([frozenset((1, 2))])
    assert book.add([frozenset((1, 3))]) == {1}
    assert not book.add([frozenset((2, 4))])
    assert book.add([frozenset((1, 4))]) == {1}, "started again, it is the one that was in disputes before"


def test_one_liar_that_is_started_again_and_again_takes_one_along():
    book, lost = Disputes(), set()
    for victim in (1, 2, 3, 4):
        for _ in range(2):
            lost |= book.add([frozenset((0, victim))]) - {0}
    assert lost == {1}


def test_whoever_does_not_answer_is_asked_again_and_leaves_when_its_time_is_over():
    table = Scattered()
    fire = table.began()
    table.reduced(fire, VICTIM)
    for replica in (0, 1, 3):
        table.says(fire, replica)
    table.now_s += 5.0
    again = []
    for replica in table.present:
        beat = msgspec.structs.replace(table.hub.members[replica].beat, reduced=fire.round, joined=fire.round)
        sent = [each for each in table.hub.receive(beat, table.now_s) if isinstance(each, Send)]
        again += [each.replica for each in sent if isinstance(each.message, Compare)]
    assert again == [2, 4]
    assert table.hub.rounds.missing(table.now_s + 1000.0) == [2, 4], "it has a deadline"
    table.hub.leave({LIAR: "silent"}, table.now_s)
    assert table.hub.rounds.comparison is None


def test_answers_that_are_late_or_of_other_sizes_change_nothing():
    table = Scattered()
    fire = table.began()
    table.reduced(fire, VICTIM)
    comparison = table.hub.rounds.comparison
    said = Compared(9, 1, "i1", fire.generation, fire.round, b"d" * 32 * 5, b"s" * 64 * 5)
    for wrong in ({"digests": b"d" * 32}, {"signatures": b""}, {"digests": b"", "signatures": b""}):
        changed = msgspec.structs.replace(said, **wrong)
        assert Guard(table.hub).verdict(changed, 1) is Kind.RANGE
        table.hub.receive(changed, table.now_s)
    table.hub.receive(msgspec.structs.replace(said, round=fire.round + 1), table.now_s)
    assert comparison.awaited == set(fire.members)
    table.hub.receive(said, table.now_s)
    table.hub.receive(msgspec.structs.replace(said, digests=b"x" * 32 * 5), table.now_s)
    assert comparison.said[1] == said, "the first word counts"


def test_an_answer_of_as_many_members_as_are_compared_fits_into_a_frame():
    members = comparing.MOST_COMPARED
    largest = Compared(2**40, 2**20, "i" * 16, 2**40, 2**40, bytes(32 * members), bytes(64 * members))
    assert decode(encode(largest)) == largest


def test_nobody_signs_a_round_twice_and_old_rounds_never():
    signer, digest = Signer(), digest_of([b"what all are told"])
    assert verified(signer.key, signer.sign(1, 5, digest), statement(1, 5, digest))
    assert signer.sign(1, 5, digest_of([b"something else"])) == UNSIGNED
    assert signer.sign(1, 4, digest) == UNSIGNED
    assert verified(signer.key, signer.sign(2, 6, digest), statement(2, 6, digest))
    assert not verified(b"no key", bytes(64), b"")
    assert not verified(Signer().key, UNSIGNED, b"")


def test_a_key_that_is_none_is_refused():
    table = Scattered()
    assert Guard(table.hub).verdict(Hello(1, 0, "new", "h", 1, "c0ffee", "layout", key=b"short"), None) is Kind.RANGE


@pytest.mark.parametrize("why", ["gathered", "too many"])
def test_without_owners_or_with_too_many_members_who_differs_leaves_unheard(monkeypatch, why):
    table = Scattered()
    if why == "gathered":
        table.hub.plan = replace(table.hub.plan, kpool=replace(table.hub.plan.kpool, reduce=Reduce.GATHER))
    else:
        monkeypatch.setattr(comparing, "MOST_COMPARED", 4)
    effects = table.reduced(table.began(), LIAR)
    assert not table.orders(effects, Compare)
    assert list(table.left(effects)) == [LIAR]


@pytest.mark.parametrize("seed", range(40))
def test_a_liar_that_knows_the_rule_takes_at_most_one_along(seed):
    """Of 9 members up to 4 lie. They choose by lot whom they deceive or accuse; then all is tried again."""
    draw = random.Random(seed)
    liars = set(draw.sample(range(9), 1 + seed % 4))
    disputes, here, lost = Disputes(), set(range(9)), set()
    for round_ in count():
        if not liars & here:
            break
        most = draw.choice([1, 1, 2, 4, 8])
        pairs = {
            frozenset((liar, draw.choice(sorted(here - {liar}))))
            for liar in sorted(liars & here)
            for _ in range(draw.randint(1, most))
        }
        leaving = disputes.add(pairs)
        assert leaving or round_ < 40, "it comes to an end"
        here -= leaving
        lost |= leaving - liars
    assert len(lost) <= len(liars), (lost, liars)
