"""What a hub orders is judged before it is used: what cannot be ends the replica in one line; all else never does."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_messages import BEAT
from tsugi_cli.launch.failure import Failure, failure_of
from tsugi_kpool.core.messages import (
    Abort,
    Commit,
    Drain,
    Finish,
    Fire,
    Generation,
    Lease,
    Message,
    Refill,
    Refused,
    decode,
    encode,
)
from tsugi_kpool.core.replica.orders import NO_LIMITS, Limits, impossible
from tsugi_kpool.errors import ConfigError, DataError, ExitCode, LaunchError, MachineError, TsugiError
from tsugi_kpool.sideband.incoming import MOST_WORDS
from tsugi_kpool.sideband.keys import RunKeys
from tsugi_kpool.sideband.link import Identity, Link

OWN = 1
RUN = Limits(replicas=3, adapters=4, samples=40, micro_batch=2)

FORGED = [
    (Generation(1, (), 0), "without replica 1"),
    (Generation(1, (0, 2), 0), "without replica 1"),
    (Generation(1, (1, 1), 0), "2 members up to 1"),
    (Generation(1, (1, 3), 0), "a run of 3 replicas"),
    (Generation(1, tuple(range(10_000)), 0), "10000 members up to 9999"),
    (Generation(1, (0, 1), 0, newcomers=(2,)), "newcomers"),
    (Generation(1, (0, 1), 0, newcomers=(1,), donor=2), "replica 2 as the donor"),
    (Generation(1, (0, 1), 0, active=(4,)), "a pool of 4"),
    (Fire(1, 1, (), (), "count"), "no adapter"),
    (Fire(1, 1, (99_999,), (), "count"), "adapter 99999"),
    (Fire(1, 1, (0, 0), (), "count"), "twice"),
    (Fire(1, 1, (0,), (), "count", active=(1, 1)), "twice"),
    (Commit(1, 1, active=(4,)), "a pool of 4"),
    (Lease(1, 10**9, 10**9 + 4), "samples 1000000000"),
    (Lease(1, 0, 41), "samples 0 to 41, of 40"),
    (Lease(1, 4, 3), "samples 4 to 3"),
    (Lease(1, 0, 4, micro_batch=2**50), "2 is the most"),
]
HONEST = [
    Generation(1, (1,), 0),
    Generation(5, (0, 1, 2), 7, active=(0, 3), newcomers=(1, 2), donor=0),
    Generation(5, (1, 2), 7),  # nobody is new, and the donor is not looked at
    Fire(1, 1, (0, 1, 2, 3), (), "count"),
    Fire(1, 1, (3,), (0, 1), "count", active=(2, 0)),
    Commit(1, 1, active=(3, 0)),
    Lease(1, 0, 4),
    Lease(1, 40, 40, micro_batch=2),
    Abort(1, 1, "late"),
    Drain("interrupted"),
    Refill(),
]


@pytest.mark.parametrize(("order", "says"), FORGED)
def test_what_cannot_be_is_named(order, says):
    for begun in (False, True):
        fault = impossible(order, OWN, RUN, begun)
        assert fault is not None
        assert says in fault


@pytest.mark.parametrize("order", HONEST)
def test_what_can_be_is_not_refused(order):
    for limits in (RUN, NO_LIMITS):
        assert impossible(order, OWN, limits, begun=False) is None


def test_nobody_finishes_before_the_first_generation():
    finish = Finish(0, evaluate=True)
    assert "before replica 1" in (impossible(finish, OWN, RUN, begun=False) or "")
    assert impossible(finish, OWN, RUN, begun=True) is None


def a_link() -> Link:
    """Never started: the tests deliver what a hub would send."""
    identity = Identity(OWN, "h", 1, "c0ffee", "l")
    return Link(RunKeys.none(), identity, lambda incarnation: BEAT, 0.5, 20.0, limits=RUN)


@pytest.mark.parametrize(("order", "says"), [*FORGED, (Finish(0, evaluate=True), "the end")])
def test_a_link_ends_in_one_line_and_frees_a_waiting_collective(order, says):
    link, heeded = a_link(), []
    link.watch(heeded.append)
    link.deliver(order)
    for ask in (lambda: link.next_order(0.0), link.lease):
        with pytest.raises(LaunchError, match=r"^the hub orders what cannot be: ") as caught:
            ask()
        assert says in str(caught.value)
    assert [type(each) for each in heeded] == [Refused]


# A few plain numbers and the absurd ones: orders that can be, and ones that cannot, both come often.
numbers = st.sampled_from([0, 1, 2, 3, 4, 5, 39, 40, 41, 10**9, 2**53])
some = st.lists(numbers, max_size=6).map(tuple)
orders = st.one_of(
    st.builds(Generation, numbers, some, numbers, some, some, numbers),
    st.builds(Fire, numbers, numbers, some, some, st.just("count"), numbers, some),
    st.builds(Commit, numbers, numbers, some, st.booleans()),
    st.builds(Lease, st.just(1), numbers, numbers, numbers),
    st.builds(Finish, numbers, st.booleans(), numbers),
)


@given(orders, st.booleans())
def test_what_passes_is_safe_to_use(order: Message, begun: bool):
    """What the engine does with an order finds what it looks for."""
    fault = impossible(order, OWN, RUN, begun)
    if fault is not None:
        assert len(fault) < 200
        assert fault.isprintable()
        return
    if isinstance(order, Generation):
        order.members.index(OWN)
        assert len(order.members) <= RUN.replicas
        assert not order.newcomers or order.members.index(order.donor) >= 0
    if isinstance(order, Fire):
        assert order.adapters
        assert len(set(order.adapters)) == len(order.adapters) <= RUN.adapters
    if isinstance(order, (Generation, Fire, Commit)):
        assert set(order.active) <= set(range(RUN.adapters))
    if isinstance(order, Lease):
        assert len(range(order.start, order.stop)) <= len(range(RUN.samples)[order.start : order.stop])


@given(st.lists(orders, max_size=5))
def test_no_order_ends_a_link_but_in_its_own_words(several: list[Message]):
    link = a_link()
    for order in several:
        link.deliver(decode(encode(order)))
    with suppress(LaunchError):  # nothing else comes
        for _ in several:
            link.next_order(0.0)


@pytest.mark.parametrize("how", [{}, {"fenced": True}, {"fenced": True, "quarantined": True}])
def test_a_refusal_is_one_line_however_long_the_hub_makes_it(how):
    link = a_link()
    link.deliver(Refused("no\n\tway " * 1500, **how))
    with pytest.raises(TsugiError) as caught:
        link.next_order(0.0)
    assert "no way no" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < MOST_WORDS + 100


@pytest.mark.parametrize("kind", [ConfigError, DataError, MachineError])
def test_what_the_user_can_mend_is_told_without_a_traceback(kind):
    text = f'  File "story.py", line 67, in finetune\n{kind.__module__}.{kind.__name__}: lora: modules not found'
    error = failure_of(Failure(1, 1, text, Path("log")), None)
    assert str(error) == "replica 1 failed: lora: modules not found (log: log)"
    assert error is not None
    assert error.exit_code == kind.exit_code


def test_what_has_ended_a_replica_from_outside_is_told_without_a_traceback():
    says = "the hub orders what cannot be: samples 4 to 3, of 40"
    text = f"  raise self._failure\ntsugi_kpool.errors.LaunchError: {says}"
    error = failure_of(Failure(1, 1, text, Path("log")), None)
    assert str(error) == f"replica 1 has ended: {says} (log: log)"
    assert error is not None
    assert error.exit_code == ExitCode.LAUNCH
