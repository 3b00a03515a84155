"""Workers of one replica: who is one, what they say to each other, what their parts weigh. Real gloo groups."""

from __future__ import annotations

import json
import subprocess
import sys
from unittest.mock import Mock

import pytest

from tests.support import forking, kpool
from tsugi_kpool import world
from tsugi_kpool.errors import ConfigError, TrainingError

JOIN_S = 90


def worker_main(rank: int, folder) -> None:
    import torch
    import torch.distributed as dist

    from tests.support import tiny_lora
    from tsugi_kpool.core.messages import Evaluated, Lease
    from tsugi_kpool.engine import local_group
    from tsugi_kpool.engine.inside import found

    torch.set_num_threads(1)
    local_group.AFTER_LEADER_S = 0.0
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=3)
    facts = {"alone": found(rank, 3).workers}
    try:
        found(rank // 2, 2)
    except ConfigError as error:
        facts["spans"] = str(error)
    inside = found(0, 2)
    facts["workers"] = [inside.worker, inside.workers]
    step = local_group.whole(inside, tokens=[5, 0, 7][rank], samples=1, loss=[2.0, float("nan"), 1.0][rank])
    facts["step"] = [step.tokens, step.loss, step.weight]
    ours = local_group.LocalGroup(inside, local_group.open_pool(tiny_lora(kpool()), 4, "default", inside))
    long = tuple(range(1000))  # a word that does not fit into one frame
    if rank == 0:
        ours.broadcast(local_group.StepMessage(waiting=True))
        ours.broadcast(local_group.StepMessage(active=long, lease=Lease(ticket=3, start=6, stop=9)))
        word = local_group.StepMessage(active=long, lease=Lease(ticket=3, start=6, stop=9))
    else:
        word = ours.receive()
    facts["word"] = [list(word.active) == list(long), word.lease.stop if word.lease else None]
    facts["moments"] = handed_on(rank, inside)
    facts["left"] = followed(rank, inside)
    facts["sharded"] = in_shards()
    part = Evaluated(0, 0, "", "base", {"loss_sum": 1.0 + rank, f"only{rank}": 1.0}, ())
    facts["sums"] = ours.merge(part).sums
    if rank == 0:
        ours.broadcast(local_group.StepMessage(failed="spilt"))
    else:
        try:
            ours.receive()
        except TrainingError as error:
            facts["failed"] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(facts))
    dist.destroy_process_group()


def handed_on(rank: int, inside) -> list[list[float]]:
    """What every optimizer of a newcomer's workers has before and after a step behind a donor's moments."""
    import torch

    from tests.support import tiny_lora
    from tsugi_kpool.core.replica.ports import Uplink
    from tsugi_kpool.engine.aggregator import Aggregator
    from tsugi_kpool.engine.boundary import Boundary
    from tsugi_kpool.engine.engine import KPoolEngine
    from tsugi_kpool.engine.follower import Follower
    from tsugi_kpool.engine.state import moments

    settings, uplink = kpool(), Mock(Uplink)
    donor = KPoolEngine(tiny_lora(settings), settings, 0)
    donors = torch.optim.AdamW(donor.trainable(), lr=1e-3)
    step(donor, donors, 0.3)
    model = tiny_lora(settings)
    if rank:
        engine = Follower(model, settings, inside)
    else:
        engine = KPoolEngine(model, settings, 1, inside=inside)
        engine._boundary = Boundary(
            engine._local_group,
            engine.buffer,
            Aggregator(engine.buffer, settings, uplink, Mock()),
            uplink,
            settings,
        )
        engine.buffer.inherit(moments(donors))
    optimizer = torch.optim.AdamW(engine.trainable(), lr=1e-3)
    found = []
    for gradient in (0.5, 0.7):
        engine.apply_rounds()
        step(engine, optimizer, gradient)
        found.append(sorted(float(value.double().sum()) for value in moments(optimizer).values()))
    step(donor, donors, 0.5)
    step(donor, donors, 0.7)
    return [*found, sorted(float(value.double().sum()) for value in moments(donors).values())]


def followed(rank: int, inside) -> list[int]:
    """For how many replicas a worker's FleetAdamW steps: before any generation, in one of three, and left alone."""
    from tests.support import tiny_lora
    from tsugi_kpool import FleetAdamW
    from tsugi_kpool.core.replica.ports import Uplink
    from tsugi_kpool.engine.aggregator import Aggregator
    from tsugi_kpool.engine.boundary import Boundary
    from tsugi_kpool.engine.engine import KPoolEngine
    from tsugi_kpool.engine.follower import Follower

    settings, uplink = kpool(), Mock(Uplink)
    model, aggregator = tiny_lora(settings), Mock(members=())
    if rank:
        engine = Follower(model, settings, inside)
    else:
        engine = KPoolEngine(model, settings, 1, inside=inside)
        aggregator = Aggregator(engine.buffer, settings, uplink, Mock())
        engine._boundary = Boundary(engine._local_group, engine.buffer, aggregator, uplink, settings)
    optimizer, found = FleetAdamW(engine.trainable(), replicas=2, lr=1e-3), []
    for members in ((), (0, 1, 2), (1,)):
        aggregator.members = members
        engine.apply_rounds()
        step(engine, optimizer, 0.5)
        found.append(optimizer.param_groups[0]["replicas"])
    return found


def in_shards() -> bool:
    """Whether FleetAdamW takes the same steps on rows that are spread over the workers, as FSDP2 spreads them."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    from tsugi_kpool import FleetAdamW

    mesh, draw = init_device_mesh("cpu", (3,)), torch.Generator().manual_seed(0)
    start = torch.randn(7, 4, generator=draw)
    spread = torch.nn.Parameter(distribute_tensor(start, mesh, [Shard(0)]))
    plain = torch.nn.Parameter(start.clone())
    optimizers = [FleetAdamW([each], replicas=4, lr=0.1) for each in (spread, plain)]
    for _ in range(5):
        gradient = torch.randn(7, 4, generator=draw)
        spread.grad, plain.grad = distribute_tensor(gradient, mesh, [Shard(0)]), gradient
        for optimizer in optimizers:
            optimizer.step()
    return torch.equal(spread.full_tensor(), plain)


def step(engine, optimizer, gradient: float) -> None:
    import torch

    for parameter in engine.pool.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    engine.apply(optimizer, 5)


@pytest.fixture(scope="module")
def facts(tmp_path_factory) -> list[dict]:
    """What three workers have seen."""
    folder = tmp_path_factory.mktemp("inside")
    context = forking()
    processes = [context.Process(target=worker_main, args=(rank, folder)) for rank in range(3)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(JOIN_S)
            assert process.exitcode == 0
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(3)]


def test_a_default_group_is_the_replicas_own_or_nobodys_or_refused(facts):
    assert [fact["workers"] for fact in facts] == [[0, 3], [1, 3], [2, 3]]
    assert [fact["alone"] for fact in facts] == [1, 1, 1], "every process is a replica of its own"
    assert all("[2, 1]" in fact["spans"] and "one torchrun agent for each replica" in fact["spans"] for fact in facts)


def test_parts_of_a_step_weigh_as_many_tokens_as_they_have(facts):
    """Averaged over three workers as equals, 3 * 5/12 and 3 * 7/12 give the mean over 12 tokens."""
    assert [fact["step"][:2] for fact in facts] == [[12, pytest.approx(17 / 12)]] * 3
    assert [fact["step"][2] for fact in facts] == [pytest.approx(15 / 12), 0.0, pytest.approx(21 / 12)]


def test_an_optimizer_for_a_fleet_follows_those_who_are_left_on_every_worker(facts):
    assert [fact["left"] for fact in facts] == [[2, 3, 1]] * 3


def test_an_optimizer_for_a_fleet_steps_shards_as_it_does_the_whole(facts):
    assert all(fact["sharded"] for fact in facts)


def test_a_word_of_any_length_arrives_and_a_failure_has_its_reason(facts):
    assert [fact["word"] for fact in facts] == [[True, 9]] * 3
    assert [fact.get("failed") for fact in facts] == [None] + ["worker 0 of this replica has failed: spilt"] * 2


def test_a_donors_moments_reach_the_optimizers_of_all_workers_at_the_same_step(facts):
    first, second, donors = facts[0]["moments"]
    assert all(each["moments"] == facts[0]["moments"] for each in facts)
    assert first != second
    assert second == donors, "fresh ones would have led elsewhere"


def test_the_leader_sends_the_sums_of_all_parts_of_an_evaluation(facts):
    assert facts[0]["sums"] == {"loss_sum": 6.0, "only0": 1.0, "only1": 1.0, "only2": 1.0}


def test_the_environment_says_which_replica_an_agent_starts():
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    place = world.read(environ={**torchrun, "TSUGI_REPLICA": "3", "TSUGI_REPLICAS": "4"})
    assert (place.replica, place.replicas, place.named) == (3, 4, True)
    assert world.read(environ=torchrun).named is False
    assert world.worker_rank(torchrun).workers == 2
    with pytest.raises(ConfigError, match="TSUGI_REPLICA must be a whole number, found 'one'"):
        world.read(environ={"TSUGI_REPLICA": "one", "TSUGI_REPLICAS": "4"})
    with pytest.raises(ConfigError, match="given together"):
        world.read(environ={"TSUGI_REPLICA": "1"})


ENDS = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tsugi_kpool.engine.inside import Workers

sys.setswitchinterval(0.05)  # a thread that wants the interpreter waits long for it


def one_run():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    wrapped, inside = DistributedDataParallel(torch.nn.Linear(4, 4)), Workers()
    for _ in range(3):
        word = torch.zeros(1032, dtype=torch.uint8)
        inside.share(word)
    dist.destroy_process_group()


for _ in range(100):
    one_run()
"""


@pytest.mark.timeout(300)
def test_a_wrapped_model_that_outlives_its_group_does_not_hang_the_process():
    """DDP's reducer was the group's last owner, and waited with the GIL in its hands for a thread that wants it."""
    subprocess.run([sys.executable, "-c", ENDS], check=True, timeout=250)
