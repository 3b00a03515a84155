"""A pool on a GPU is the same pool as on a CPU: same values, same digests of a round, pinned copies."""

from __future__ import annotations

import pytest
import torch

from tests.support import kpool, tiny_lora
from tsugi_kpool.core.settings import Payload
from tsugi_kpool.engine.buffer import ElasticBuffer
from tsugi_kpool.engine.local import LocalUpdate
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.engine.rounds import RoundResult, combine, pack
from tsugi_kpool.engine.transfers import CudaTransfers

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ELSEWHERE = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])


def a_pool(device: str) -> tuple[AdapterPool, ElasticBuffer]:
    pool = AdapterPool(tiny_lora(kpool()).to(device), n=4)
    return pool, ElasticBuffer(LocalUpdate(pool))


def changed(pool: AdapterPool, buffer: ElasticBuffer) -> None:
    """A step whose change is the same numbers on every device."""
    numbers = torch.Generator().manual_seed(7)
    buffer.open_step()
    for parameter in pool.parameters():
        parameter.data += torch.randn(parameter.shape, generator=numbers).to(parameter.device)
    buffer.close_step(tokens=3, lr=0.1)


def digest(device: str, payload: Payload) -> str:
    """Of a round of one member."""
    pool, buffer = a_pool(device)
    changed(pool, buffer)
    contribution = buffer.contribution([0, 2])
    found = combine([pack(contribution, payload)], 0, contribution, buffer.update, payload, error_feedback=True)
    assert isinstance(found, RoundResult)
    return found.digest


@ELSEWHERE
@pytest.mark.parametrize("payload", list(Payload))
def test_a_round_has_the_digest_that_it_has_on_a_cpu(device, payload):
    """Members of unlike devices must agree on it, or no round between them is ever committed."""
    assert digest(device, payload) == digest("cpu", payload)


@ELSEWHERE
def test_layout_and_values_are_those_of_the_pool_on_a_cpu(device):
    here, there = a_pool("cpu")[0], a_pool(device)[0]
    assert there.layout("int8") == here.layout("int8")
    assert torch.equal(there.read(range(4)), here.read(range(4)))
    assert there.read([1]).device.type == "cpu"


@ELSEWHERE
def test_a_base_in_half_precision_trains_a_pool_in_fp32(device):
    model = tiny_lora(kpool()).to(device)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    pool = AdapterPool(model, n=4)
    before = pool.read(range(4))
    optimizer = torch.optim.AdamW(pool.parameters(), lr=0.01)
    ids = torch.arange(2, 18, device=device).view(2, 8)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    after = pool.read(range(4))
    assert {each.dtype for each in pool.parameters()} == {torch.float32}
    assert bool(after.isfinite().all())
    assert not torch.equal(before, after)


@GPU
def test_a_copy_from_the_gpu_is_pinned_and_made_beside_the_training_stream():
    pool, _ = a_pool("cuda")
    assert isinstance(pool.transfers, CudaTransfers)
    assert pool.copy([0, 1]).wait().is_pinned()
    assert pool.transfers._side != torch.cuda.current_stream()


@GPU
def test_a_snapshot_does_not_wait_for_the_step_that_is_computed_beside_it():
    """The training stream is busy while the copy is there already: only the newest change is waited for."""
    pool, buffer = a_pool("cuda")
    changed(pool, buffer)
    pool.copy([0, 1]).wait()  # its kernels are loaded now, for which a device may wait
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)
    busy = torch.cuda.current_stream().record_event()
    pool.copy([0, 1]).wait()
    still_busy = not busy.query()
    busy.synchronize()
    assert still_busy
