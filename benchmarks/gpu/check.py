"""Everything about Tsugi that needs a GPU, in at most 8 minutes on a machine with one.

    benchmarks/gpu/check.sh               writes benchmarks/results/gpu.json
    benchmarks/gpu/check.sh --cpu         the same program with small shapes on a CPU; writes gpu_tried_on_cpu.json

Its parts are in `parts_of`. Each is a program of its own with a time limit; one that fails, or cannot run here, says
why in the result and the next one begins. The exit code is 1 where a part failed, and where there is no device.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from gpu.parts import MOST_S, ROOT, Part, Unusable, run_all
from harness import save

HERE = ROOT / "benchmarks"
TESTS = ("tests/engine/test_transfers.py", "tests/engine/test_cuda.py")
DATA = ("data=tools", "data.n_train=160", "data.n_eval=8", "data.n_test=0", "data.scorer=null", "evaluate.examples=0")
PATIENCE = 3.0
"""How much longer a CPU may take than a GPU."""
NEEDS_BITS = "bitsandbytes is not installed: pip install 'tsugi[quant]'"
NO_GPU_BITS = "4 bits need a GPU"
GOAL = 1.01
"""Of a step's time: what the engine may add."""


def parts_of(cpu: bool, folder: Path) -> list[Part]:
    """All parts in the order in which they run. Their limits make 8 minutes together; on a CPU more."""
    device = "cpu" if cpu else "cuda"
    large, middle = folder / "large", folder / "middle"
    big = [] if not cpu else ["--rows", "2", "--length", "64", "--steps", "3"]

    def program(script: str, *words: str) -> Callable[[Path], list[str]]:
        return lambda own: [sys.executable, str(HERE / script), *(each.replace("OWN", str(own)) for each in words)]

    def model(shape: str, to: Path) -> Callable[[Path], list[str]]:
        return program("llama3_8b_lora/shape.py", str(to), "--shape", "small" if cpu else shape)

    def steps(*words: str) -> Callable[[Path], list[str]]:
        return program("gpu/large.py", str(large), "--device", device, *big, *words, "--out", "OWN/figures.json")

    flags = ["--cpu"] if cpu else []
    pairs = ("--models", str(middle), "--device", device, "--pairs", "6", "--to", "OWN/figures.json")
    parts = [
        Part("device", 25, program("gpu/device.py", "OWN/figures.json", *flags)),
        Part("tests", 45, _tests, tests_read),
        Part("middle_model", 25, model("1b", middle), lambda _: _size(middle)),
        Part("sharing", 70, lambda own: _sharing(own, middle, device), sharing_read, why_not=_lacks(middle)),
        Part("overhead", 50, program("engine/overhead.py", *pairs), overhead_read, why_not=_lacks(middle)),
        Part("straggler", 110, lambda own: _straggler(own, middle, cpu), straggler_read, (0, 3, 4), _lacks(middle)),
        Part("large_model", 45, model("8b", large), lambda _: _size(large)),
        Part("bf16", 50, steps(), why_not=_lacks(large)),
        Part("bits", 60, steps("--quantize", "4bit"), why_not=lambda: _no_bits(cpu) or _lacks(large)()),
    ]
    return [replace(each, limit_s=each.limit_s * (PATIENCE if cpu else 1.0)) for each in parts]


def _lacks(model: Path) -> Callable[[], str | None]:
    return lambda: None if (model / "config.json").exists() else f"there is no {model.name} model"


def _no_bits(cpu: bool) -> str | None:
    if importlib.util.find_spec("bitsandbytes") is None:
        return NEEDS_BITS
    return NO_GPU_BITS if cpu else None


def _size(model: Path) -> dict[str, Any]:
    return {"bytes": sum(each.stat().st_size for each in model.glob("*.safetensors"))}


def _tests(own: Path) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, f"--junitxml={own / 'tests.xml'}"]


def tests_read(own: Path) -> dict[str, Any]:
    """How many passed, and what was skipped for want of a GPU."""
    cases = list(ElementTree.parse(own / "tests.xml").iter("testcase"))
    skipped = [str(case.get("name")) for case in cases if case.find("skipped") is not None]
    return {"passed": len(cases) - len(skipped), "skipped": skipped}


def _sharing(own: Path, model: Path, device: str) -> list[str]:
    """Two replicas of `tsugi finetune` on one device; their rounds go over gloo."""
    fleet = ("topology.replicas=2", "topology.min_replicas=2", "topology.workers=1", f"topology.device={device}")
    size = ("data.max_tokens=192", "train.micro_batch=2", "train.max_steps=40", "evaluate.batch=4")
    words = (*DATA, *fleet, *size, f"model={model}", f"runs_dir={own / 'runs'}")
    return [sys.executable, "-m", "tsugi_cli.app", "finetune", "--plain", *words]


def sharing_read(own: Path) -> dict[str, Any]:
    """Speed, rounds and losses. A run without an applied round has shared nothing."""
    summary = json.loads((own / "runs" / "latest" / "summary.json").read_text(encoding="utf-8"))
    found = {key: summary[key] for key in ("tokens_per_s", "rounds", "goodput", "evaluation")}
    if not sum(found["rounds"].values()):
        raise Unusable("no round was applied")
    return found


def overhead_read(own: Path) -> dict[str, Any]:
    """Time of a step with the engine / without, and whether the goal is met."""
    (world,) = json.loads((own / "figures.json").read_text(encoding="utf-8"))["worlds"]
    kept = {key: world[key] for key in ("steps", "rounds_per_step", "wall", "thread", "process", "calls")}
    return {**kept, "goal": GOAL, "within_goal": within(GOAL, world["wall"])}


def within(goal: float, ratio: dict[str, float]) -> bool | None:
    """Whether the middle half of the pairs lies on one side of the goal; None: they are too far apart to say."""
    if ratio["q3"] <= goal:
        return True
    return False if ratio["q1"] > goal else None


def _straggler(own: Path, model: Path, cpu: bool) -> list[str]:
    short = ["--pairs", "1", "--steps", "12", "--replicas", "2", "--model", str(model), "--out", str(own / "runs")]
    script = str(HERE / "llama3_8b_lora" / "run.py")
    return [sys.executable, script, "--one-gpu", *short, *(["--small"] if cpu else [])]


def straggler_read(own: Path) -> dict[str, Any]:
    """Tokens/s of K-Pool and of DDP with one replica 4x slower."""
    arms = {each: json.loads((own / "runs" / "seed0" / f"{each}.json").read_text()) for each in ("sync", "kpool")}
    for name, record in arms.items():
        if record["failure"] is not None:
            raise Unusable(f"{name}: {record['failure']}")
    speeds = {name: record["tokens_per_s"] for name, record in arms.items()}
    if None in speeds.values():
        raise Unusable(f"too few steps to time: {speeds}")
    losses = {name: record["final_loss"] for name, record in arms.items()}
    return {"tokens_per_s": speeds, "ratio": speeds["kpool"] / speeds["sync"], "final_loss": losses}


def memory_of(outcomes: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Peak memory / a dry run's estimate, of each part that knows its peak; on a CPU what is held between steps."""
    found = {}
    for name in ("bf16", "bits"):
        figures = outcomes[name].get("figures", {})
        if figures:
            found[name] = figures.get("peak_over_dry_run", figures["held_over_dry_run"])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="small shapes on a CPU: all but CUDA is tried")
    cpu = parser.parse_args().cpu
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first, *others = parts_of(cpu, folder)
        outcomes = run_all([first], folder, first.limit_s)
        if "figures" not in outcomes[first.name]:
            return 1  # there is no device: it has said so
        outcomes |= run_all(others, folder, MOST_S * (PATIENCE if cpu else 1.0) - first.limit_s)
    memory = memory_of(outcomes)
    save("gpu_tried_on_cpu" if cpu else "gpu", {"parts": outcomes, "memory_over_dry_run": memory})
    return int(any("why_not" in each and "command" in each for each in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
