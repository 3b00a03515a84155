"""Paired runs of the protocol on this machine, and their verdict.

    python benchmarks/llama3_8b_lora/run.py --scaled            five pairs, a tiny Llama on CPU, one replica 4x slower
    python benchmarks/llama3_8b_lora/run.py --one-gpu           random weights of Llama-3-8B's shape on a shared GPU
    python benchmarks/llama3_8b_lora/run.py --one-gpu --small   the same program on CPU with a small shape

Both arms get the recipe llama3_8b_lora and the same overrides. A step takes `--device-s` seconds at least, by
sleep, on the slow replica four times as much: what other programs do to this machine's cores then changes little.
On a GPU it is measured first. The scaled run's figure is what a straggler costs; the cluster's links are not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import records
import verdict

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from harness import save  # noqa: E402

SLOWER = 4.0
TIMEOUT_S = 1200.0
NO_GPU = "there is no GPU here: --one-gpu needs one of 80 GB; add --small to try the program with a small shape"


@dataclass(frozen=True)
class Protocol:
    """What both arms of all pairs have in common."""

    overrides: tuple[str, ...]
    replicas: int
    device_s: float
    """Of a step on a replica that is not slow."""
    slower: float = SLOWER
    """The last replica's factor; 1 slows nobody down."""
    sync_n: int = 1
    """How many times rank 16 the synchronous arm has: 1 as published, 8 for the pool's total rank."""

    def words(self, seed: int) -> list[str]:
        """Overrides of a run."""
        fault = []
        if self.device_s > 0:
            seconds = [self.device_s] * (self.replicas - 1) + [self.device_s * self.slower]
            fault = [f"fault.step_s=[{','.join(f'{i}:{s:g}' for i, s in enumerate(seconds))}]"]
        fleet = [f"topology.replicas={self.replicas}", f"topology.min_replicas={self.replicas}", "topology.workers=1"]
        return [f"seed={seed}", *fleet, "topology.inside=ddp", *fault, *self.overrides]


def scaled(arguments: argparse.Namespace) -> Protocol:
    """A tiny Llama on CPU; everything else as in the recipes, shortened."""
    steps = arguments.steps * arguments.replicas
    data = (
        "data=tools",
        "data.n_train=480",
        "data.n_eval=32",
        "data.n_test=0",
        "data.scorer=null",
        "evaluate.examples=0",
        "data.max_tokens=192",
    )
    short = (
        "train.micro_batch=2",
        f"train.max_steps={steps}",
        f"train.lr={arguments.lr:g}",
        "evaluate.batch=8",
    )
    model = ("model=tiny", "model.dtype=float32", "train.checkpoint.every_s=0")
    return Protocol((*model, *data, *short), arguments.replicas, arguments.device_s, sync_n=arguments.sync_n)


def one_gpu(arguments: argparse.Namespace, scratch: Path) -> Protocol:
    """Replicas share the GPU, so that a step depends on the other replicas: its duration is measured first."""
    import shape

    path = shape.make(Path(arguments.model or scratch / "model"), "small" if arguments.small else "8b")
    length, batch = (192, 2) if arguments.small else (2048, 4)
    size = (f"data.max_tokens={length}", f"train.micro_batch={batch}")
    data = (
        "data=tools",
        "data.n_train=480",
        "data.n_eval=16",
        "data.n_test=0",
        "data.scorer=null",
        "evaluate.examples=0",
    )
    model = (f"model={path}", "model.dtype=bfloat16", "train.checkpoint.every_s=0")
    steps = (f"train.max_steps={arguments.steps * arguments.replicas}", f"train.lr={arguments.lr:g}")
    common = (*model, *data, *size, *steps, "evaluate.batch=4")
    probe = Protocol(common, arguments.replicas, 0.0)
    done = kpool(probe, 0, scratch / "probe")
    durations = [json.loads(line)["step_s"] for line in (done / "metrics.jsonl").read_text().splitlines()]
    return Protocol(common, arguments.replicas, statistics.median(durations), sync_n=arguments.sync_n)


def sync(protocol: Protocol, seed: int, out: Path) -> None:
    """One synchronous run, which writes its own record."""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--rdzv-backend=tsugi",
        f"--nproc-per-node={protocol.replicas}",
    ]
    recipe = (
        f"recipe={HERE / 'sync.yaml'}",
        f"lora.rank={16 * protocol.sync_n}",
        f"lora.alpha={32 * protocol.sync_n}",
    )
    _start([*torchrun, str(HERE / "sync.py"), "--out", str(out), *recipe, *protocol.words(seed)], out.parent)


def kpool(protocol: Protocol, seed: int, scratch: Path) -> Path:
    """One run of `tsugi finetune`; its run directory."""
    words = ["recipe=llama3_8b_lora", *protocol.words(seed), f"runs_dir={scratch / 'runs'}"]
    _start([sys.executable, "-m", "tsugi_cli.app", "finetune", "--plain", *words], scratch)
    return (scratch / "runs" / "latest").resolve()


def _start(command: list[str], cwd: Path) -> None:
    """Run to the end.

    Raises:
        RuntimeError: it failed, or took longer than TIMEOUT_S and was ended with all that it had started.
    """
    cwd.mkdir(parents=True, exist_ok=True)
    with (cwd / "output.txt").open("ab") as output:
        process = subprocess.Popen(command, cwd=cwd, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(TIMEOUT_S)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise RuntimeError(f"hung: not finished after {TIMEOUT_S:.0f} s") from None
            raise
    if code:
        raise RuntimeError((cwd / "output.txt").read_text(errors="replace").strip()[-1500:])


def pair(protocol: Protocol, seed: int, folder: Path) -> None:
    """Both arms of a seed; the order alternates."""

    def run_sync() -> None:
        sync(protocol, seed, folder / "sync.json")

    def run_kpool() -> None:
        records.write(folder / "kpool.json", records.of_finetune(kpool(protocol, seed, folder)))

    arms = {"sync": run_sync, "kpool": run_kpool}
    for name in (list(arms), list(arms)[::-1])[seed % 2]:
        if (folder / f"{name}.json").exists():
            continue  # a run that was made before this program was stopped
        try:
            arms[name]()
        except RuntimeError as error:
            records.write(folder / f"{name}.json", records.failed(name, str(error)))
        print(f"seed {seed}: {name} done", flush=True)


def result(protocol: Protocol, folder: Path, found: verdict.Judgement) -> dict[str, Any]:
    """The content of a result file."""
    pairs = {
        each.name: {arm: json.loads((folder / each.name / f"{arm}.json").read_text()) for arm in ("sync", "kpool")}
        for each in sorted(folder.glob("seed*"))
    }
    gain = found.uplift
    return {
        "overrides": protocol.overrides,
        "replicas": protocol.replicas,
        "device_s": protocol.device_s,
        "slower": protocol.slower,
        "sync_n": protocol.sync_n,
        "verdict": found.verdict,
        "reasons": found.reasons,
        "uplift": gain and {"mean": gain.mean, "lower": gain.lower},
        "loss_above": found.loss_above,
        "runs": pairs,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--scaled", action="store_true")
    kind.add_argument("--one-gpu", action="store_true")
    parser.add_argument("--small", action="store_true", help="with --one-gpu: a small shape, on CPU too")
    parser.add_argument("--model", help="with --one-gpu: where the random model lies, or is to be written (16 GB)")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=verdict.PAIRS)
    parser.add_argument("--steps", type=int, default=40, help="synchronous steps")
    parser.add_argument("--device-s", type=float, default=0.1)
    parser.add_argument("--sync-n", type=int, default=1, help="8: both arms have the same total rank")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, help="keep the runs here; those that are there are not made again")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if arguments.one_gpu and not arguments.small:
        import torch

        if not torch.cuda.is_available():
            print(NO_GPU, file=sys.stderr)
            return 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.out or Path(temporary)).resolve()
        protocol = scaled(arguments) if arguments.scaled else one_gpu(arguments, folder)
        for seed in range(arguments.pairs):
            pair(protocol, seed, folder / f"seed{seed}")
        pairs = verdict.read(folder)
        found = verdict.judge(pairs)
        print("\n".join(verdict.lines(found, pairs)))
        if arguments.save:
            save(arguments.save, result(protocol, folder, found))
    return verdict.EXIT_CODES[found.verdict]


if __name__ == "__main__":
    sys.exit(main())
