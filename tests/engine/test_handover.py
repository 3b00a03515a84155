"""A newcomer steps as the fleet does: it gets the fleet's optimizer state with the anchors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.engine.test_checkpoint_writing import gradient_round
from tests.support import kpool, tiny_lora
from tsugi_kpool.core.settings import Mode
from tsugi_kpool.engine.collective import CollectiveError, ThreadGroup, ThreadRendezvous
from tsugi_kpool.engine.gradient import GradientUpdate
from tsugi_kpool.engine.handover import hand_over, take_over
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.engine.update import LocalUpdate

SETTINGS = kpool(mode=Mode.GRADIENT)


def make(kind=torch.optim.AdamW) -> GradientUpdate:
    return GradientUpdate(AdapterPool(tiny_lora(SETTINGS), SETTINGS.n), kind, 1.0, 20)


def handed(updates, root: int) -> list:
    """What every member of a group has after the donor has handed over."""
    shared = ThreadRendezvous(len(updates))
    with ThreadPoolExecutor(len(updates)) as pool:
        jobs = [
            pool.submit(hand_over, ThreadGroup(rank, shared), root, update) for rank, update in enumerate(updates)
        ]
        return [job.result(30) for job in jobs]


@pytest.mark.parametrize("rounds", [0, 3])
def test_the_next_round_gives_a_newcomer_the_same_bits(rounds):
    newcomer, donor = make(), make()
    for seed in range(rounds):
        gradient_round(donor, seed)
    tensors = handed([newcomer, donor], root=1)[0]
    take_over(newcomer, tensors)
    newcomer.adopt(donor.anchor)
    for update in (newcomer, donor):
        gradient_round(update, 7)
    assert torch.equal(newcomer.anchor, donor.anchor)


def test_without_it_they_would_part():
    """So the test above can fail."""
    newcomer, donor = make(), make()
    gradient_round(donor, 0)
    newcomer.adopt(donor.anchor)
    for update in (newcomer, donor):
        gradient_round(update, 7)
    assert not torch.equal(newcomer.anchor, donor.anchor)


def test_local_mode_hands_over_nothing():
    update = LocalUpdate(AdapterPool(tiny_lora(kpool()), 4))
    assert handed([update, update], root=0) == [None, None]
    take_over(update, None)


def test_another_optimizers_state_is_refused():
    donor, newcomer = make(), make()
    gradient_round(donor, 0)
    tensors = handed([donor, newcomer], root=0)[1]
    with pytest.raises(CollectiveError, match="another optimizer's"):
        take_over(newcomer, {f"9{name}": value for name, value in tensors.items()})
