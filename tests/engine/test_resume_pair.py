"""Two replicas of gradient mode stop and go on: with the same rounds the losses are those of one run, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from tests.engine.test_gradient_mode import Replica, run_round, start
from tests.support import kpool
from tsugi_kpool.core.messages import Saved
from tsugi_kpool.core.settings import Mode, Payload
from tsugi_kpool.engine.checkpoint import read
from tsugi_kpool.engine.checkpoint_parts import RESIDUALS, CheckpointParts, begin_from
from tsugi_kpool.engine.state import part

ROUNDS, STOP = 10, 5


@dataclass
class Told:
    """An uplink that hears of files."""

    saved: list[Saved] = field(default_factory=list)

    def report(self, message: Saved) -> None:
        self.saved.append(message)


def trained(replicas: list[Replica], rounds: range) -> list[float]:
    """The losses of these rounds' steps."""
    losses = []
    for number in rounds:
        for rank, replica in enumerate(replicas):
            ids = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(10 * number + rank))
            replica.buffer.apply_rounds()
            loss = replica.model(input_ids=ids, labels=ids).loss
            loss.backward()
            replica.end(ids.numel() - len(ids), 1e-2)
            losses.append(float(loss.detach()))
        run_round(replicas, payload=Payload.INT4)
    return losses


def stopped(replicas: list[Replica], folder) -> None:
    """As the story ends: stand on the final anchors, write the last checkpoint."""
    for rank, replica in enumerate(replicas):
        checkpoint_parts = CheckpointParts(folder, rank, replica.buffer, Told())
        replica.buffer.settle()
        checkpoint_parts.commit(STOP, first=rank == 0, final=True)
        checkpoint_parts.give(torch.optim.AdamW(replica.pool.parameters()))
        checkpoint_parts.stop(20.0)


def resumed(folder, owing: Callable[[dict], dict]) -> list[Replica]:
    (checkpoint,) = folder.iterdir()
    replicas = [Replica(grad_clip=1.0) for _ in "ab"]
    tensors = read(checkpoint / "anchors.safetensors")
    for rank, replica in enumerate(replicas):
        begin_from(replica.buffer, tensors)
        replica.rule.restore_residuals(owing(part(read(checkpoint / f"replica{rank}.safetensors"), RESIDUALS)))
        replica.buffer.adopt(tensors["anchor"])  # as the first generation's members do
    return replicas


@pytest.mark.parametrize("whole", [True, False])
def test_what_coding_has_lost_is_in_the_checkpoint(tmp_path, whole):
    assert kpool(mode=Mode.GRADIENT).error_feedback
    undisturbed = trained(start(2, grad_clip=1.0), range(ROUNDS))
    first = start(2, grad_clip=1.0)
    losses = trained(first, range(STOP))
    stopped(first, tmp_path)
    losses += trained(resumed(tmp_path, lambda residuals: residuals if whole else {}), range(STOP, ROUNDS))
    assert (losses == undisturbed) is whole


def test_apart_from_the_hubs_machine_the_first_member_alone_writes_and_nothing_half_written_is_seen(tmp_path):
    told = [Told(), Told()]
    for rank, replica in enumerate(start(2)):
        parts = CheckpointParts(tmp_path, rank, replica.buffer, told[rank], apart=True)
        parts.commit(3, first=rank == 0)
        assert parts.wanted is (rank == 0)
        parts.give(torch.optim.AdamW(replica.pool.parameters()))
        parts.stop(20.0)
    assert sorted(each.file for each in told[0].saved) == ["anchors.safetensors", "replica0.safetensors"]
    assert told[1].saved == []
    assert sorted(path.name for path in (tmp_path / ".at3.tmp").iterdir()) == [each.file for each in told[0].saved]
