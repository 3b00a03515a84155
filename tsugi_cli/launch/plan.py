"""The plan of a launch: from a RunSpec to what will be started. Pure, printed by --dry-run, pinned by tests."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from tsugi_cli.config.adapters import described
from tsugi_cli.config.compose import config_hash, resolved_yaml
from tsugi_cli.config.data_plane import EXCHANGE, GROUP, data_plane
from tsugi_cli.config.evaluating import every
from tsugi_cli.config.spec import Dpo, Fault, RunSpec
from tsugi_cli.config.training import allowed, chosen
from tsugi_cli.finetune.data import total_samples
from tsugi_cli.record.resumed import Resumed
from tsugi_cli.record.run_dir import RunPaths
from tsugi_kpool.core.effects import HubPlan
from tsugi_kpool.core.evaluation import Unit
from tsugi_kpool.sideband.addresses import is_loopback

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=tsugi", "--nnodes=1")
"""Command of an agent whose workers meet in a file. torchrun's own backends, also --standalone, open a port (decision
0034)."""


@dataclass(frozen=True)
class Agent:
    """One torchrun agent: a replica's process supervisor."""

    replica: int
    argv: tuple[str, ...]
    env: dict[str, str]
    """Added to the launcher's own environment."""
    workers: int = 1


@dataclass(frozen=True)
class Plan:
    """Everything that a launch starts."""

    hub: HubPlan
    agents: tuple[Agent, ...]
    elsewhere: int
    """Replicas that come from other machines."""
    facts: dict[str, str]
    """Facts for the user before the run, in words."""


def make_plan(spec: RunSpec, paths: RunPaths, n_train: int, resumed: Resumed | None = None) -> Plan:
    """Return the plan of a run: the hub's, and one torchrun agent for each replica."""
    samples, topology = total_samples(spec, n_train), spec.topology
    here = topology.replicas if topology.here is None else topology.here
    elsewhere = topology.replicas - here
    hub = HubPlan(
        run=paths.root.name,
        config_hash=config_hash(spec),
        replicas=spec.topology.replicas,
        kpool=spec.kpool,
        samples=samples,
        micro_batch=spec.train.step_samples,
        lease_samples=spec.train.lease_steps * spec.train.step_samples,
        start_timeout_s=topology.join_timeout_s if elsewhere else topology.start_timeout_s,
        silent_timeout_s=topology.silent_timeout_s,
        supervised=not (elsewhere or topology.spare),
        joinable=elsewhere,
        spare=topology.spare,
        config=resolved_yaml(spec) if elsewhere or topology.spare else "",
        sample_tokens=spec.data.max_tokens * (2 if spec.train.objective == "dpo" else 1),
        lease_ahead_s=spec.train.lease_ahead_s,
        min_replicas=spec.topology.min_replicas,
        quorum_timeout_s=topology.quorum_timeout_s,
        checkpoints=True,
        done=resumed.manifest.done if resumed else (),
        bad_batches=allowed(spec.train.max_bad_batches, -(-samples // spec.train.micro_batch)),
        insecure=spec.sideband.insecure,
        evaluate=every(spec.evaluate.every),
        patience=spec.train.stop_early.patience,
        keep_best=spec.train.checkpoint.best,
        sealed=_leaves(spec) and data_plane(spec) == GROUP,
    )
    agents = tuple(agent(spec, paths, replica) for replica in range(here))
    facts = _facts(spec, samples)
    if resumed is not None:
        facts["resumes"] = resumed.text()
    return Plan(hub, agents, elsewhere, facts)


def agent(spec: RunSpec, paths: RunPaths, replica: int) -> Agent:
    """Return the torchrun agent of a replica. Each has its own: in a shared rendezvous one dead worker ends all
    (decision 0002)."""
    torchrun = [*TORCHRUN, f"--nproc-per-node={spec.topology.workers}", "--max-restarts=0"]
    worker = ["-m", "tsugi_cli.finetune.worker", "--run-dir", str(paths.root), "--replica", str(replica)]
    env = {
        "TORCHELASTIC_ERROR_FILE": str(paths.error(replica)),
        "OMP_NUM_THREADS": str(spec.topology.threads_per_worker),
        **import_env(spec),
    }
    return Agent(replica, (*torchrun, *worker), env, spec.topology.workers)


def import_env(spec: RunSpec) -> dict[str, str]:
    """Return the variables that libraries read when a worker imports them."""
    env = {"TOKENIZERS_PARALLELISM": "false"}
    if spec.model.source != "hf":
        env["HF_HUB_OFFLINE"] = "1"
    return env


def _facts(spec: RunSpec, samples: int) -> dict[str, str]:
    kpool, train = spec.kpool, spec.train
    unit = "packed rows " if spec.data.packing else "preference pairs " if train.objective == "dpo" else ""
    return {
        "recipe": spec.name,
        "model": spec.model.path or spec.model.package or spec.model.source,
        "data": f"{samples} {unit}will be trained on",
        "replicas": _replicas(spec),
        "data plane": _data_plane(spec),
        "step": f"{_share(spec)}, {-(-samples // train.step_samples)} steps of the whole fleet",
        **({"objective": _objective(train.dpo)} if train.objective == "dpo" else {}),
        "learning rate": _rate(spec),
        "lora": described(spec.lora),
        "pool": _pool(spec),
        "round": f"{kpool.trigger}, {kpool.min_steps} to {kpool.max_steps} steps per replica, {kpool.payload}",
        "evaluation": _evaluation(spec),
        "injected": ", ".join(_injected(spec.fault)) or "nothing",
    }


def _rate(spec: RunSpec) -> str:
    """How it goes; `train.warmup` and `train.decay` are shares of the run or steps."""
    train = spec.train
    warm = f"{train.warmup:.3g} of the run" if train.warmup < 1 else f"{train.warmup:.0f} steps"
    most = spec.topology.replicas + spec.topology.spare
    optimizer = chosen(train.optimizer, spec.kpool.mode, most)
    return f"{train.lr:g} for {optimizer}, {train.scheduler} over the fleet's tokens after a warm-up of {warm}"


def _objective(dpo: Dpo) -> str:
    smoothed = f", label smoothing {dpo.label_smoothing:g}" if dpo.label_smoothing else ""
    return (
        f"DPO ({dpo.loss_type}, beta {dpo.beta:g}{smoothed}) against the base model without the LoRA; a sample is a "
        "pair, two sequences"
    )


def _evaluation(spec: RunSpec) -> str:
    often, patience = every(spec.evaluate.every), spec.train.stop_early.patience
    if often is None:
        return "before and after training"
    units = {Unit.STEPS: f"{often.amount:g} steps of the fleet", Unit.SECONDS: f"{often.amount:g} s"}
    text = f"every {units.get(often.unit, f'{often.amount:.3g} of the run')}, by the slowest replica"
    text += f"; ends after {patience} without a lower loss" if patience else ""
    return f"{text}; adapter/ is that of the best version" if spec.train.checkpoint.best else text


def _pool(spec: RunSpec) -> str:
    n, each = spec.kpool.n, spec.lora.rank // spec.kpool.n
    return f"K={spec.kpool.k} of N={n} adapters of rank {each}: {n} x {each} = {spec.lora.rank}"


def _share(spec: RunSpec) -> str:
    train, workers = spec.train, spec.topology.workers
    cut = f" in {train.accumulate} micro-batches of {train.micro_batch}" if train.accumulate > 1 else ""
    if train.batch_tokens == "auto":
        return f"{train.step_samples} samples in micro-batches as large as each replica has memory for"
    if train.batch_tokens is not None:
        return f"{train.step_samples} samples in micro-batches of at most {train.batch_tokens} tokens on each worker"
    if workers == 1:
        return f"{train.step_samples} samples{cut}"
    fewest, most = train.micro_batch // workers, -(-train.micro_batch // workers)
    each = f"{most}" if fewest == most else f"{fewest} or {most}"
    return f"{train.step_samples} samples of a replica{cut}, {each} {'at once ' if cut else ''}on each worker"


def _injected(fault: Fault) -> list[str]:
    """Return the injected faults as they are written: replica:value, perhaps with the time at which they begin."""
    what = (
        (fault.slow, "x slower"),
        (fault.step_s, "s for a step at least"),
        (fault.data_wait, "s of waiting for the data of each step"),
        (fault.nan, "steps whose gradients are no numbers"),
        (fault.flip, "flips of a bit of its anchors"),
    )
    return [f"replica {entry} {does}" for entries, does in what for entry in entries]


def _replicas(spec: RunSpec) -> str:
    topology = spec.topology
    here = topology.replicas if topology.here is None else topology.here
    of = "" if topology.workers == 1 else f" of {topology.workers} workers ({topology.inside})"
    text = f"{here}{of} on this machine, {topology.threads_per_worker} thread(s) each"
    if here != topology.replicas:
        text += f"; {topology.replicas - here} that join from elsewhere"
    return f"{text}; {topology.spare} more may join later" if topology.spare else text


def _data_plane(spec: RunSpec) -> str:
    """Return how adapters travel between replicas, and who could change them on the way."""
    at = spec.topology.address or spec.sideband.bind
    if data_plane(spec) == EXCHANGE:
        return _exchange(spec, at)
    if not _leaves(spec):
        return "gloo over loopback, closed to other users of this machine"
    if spec.sideband.insecure:
        return f"gloo in plain TCP at {at}: whoever reaches that network can read and change it (sideband.insecure)"
    return (
        f"gloo at {at}, each part sealed (AES-256-GCM): whoever reaches that network can break or hold up the "
        "connections, not read or change them (topology.trust_network)"
    )


def _exchange(spec: RunSpec, at: str) -> str:
    port = spec.sideband.port
    ports = f"TCP ports {port} (hub) and {port + 1} (exchange)" if port else "two neighbouring TCP ports"
    return (
        f"exchange at {at}, TLS 1.3: replicas only connect to {ports} of this machine, which passes on one payload "
        "up and one down for each replica and round"
    )


def _leaves(spec: RunSpec) -> bool:
    """Return whether what replicas send each other leaves this machine."""
    at = spec.topology.address or spec.sideband.bind
    return spec.topology.spreads and not is_loopback(at)
