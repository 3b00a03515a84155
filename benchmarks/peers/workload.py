"""The workload that every peer gets: a tiny Llama, a byte corpus, an emulated device. Knows no peer, nor Tsugi.

A base model is first trained on one kind of sentences; all peers then teach it another kind, with LoRA of rank 8 on
`q_proj` and `v_proj`. Every rank draws samples of its own without end. A step is a real forward and backward
pass; its forward is stretched by sleep until the device would have ended it: DEVICE_S, on a straggler four times.

    python workload.py BASE    makes the base model
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

DEVICE_S = 0.4
SLOWER = 4.0
BATCH, LENGTH = 2, 64
RANK, ALPHA, TARGETS = 8, 16, ["q_proj", "v_proj"]
LR = 4e-3
EVERY_S = 3.0
"""Between two snapshots of a rank's adapter."""
EVAL_SEQUENCES = 64
PRETRAIN_STEPS = 600
SHAPE = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
_PLACES = ("harbour", "market", "mill", "station", "orchard", "library", "bridge", "quarry")
_PEOPLE = ("Ada", "Bruno", "Clara", "Dmitri", "Esther", "Farid", "Greta", "Hugo")
_GOODS = ("apples", "ropes", "letters", "lamps", "barrels", "tiles", "maps", "clocks")
_STYLES = {
    "base": "{who} walks to the {where} and buys {count} {what} there. ",
    "tuned": "<{where}|{count}|{what}> sold to {who} @ {price} each; total {total}. ",
}


@dataclass(frozen=True)
class Job:
    """One run of one peer."""

    peer: str
    scenario: str
    """healthy | straggler4x | slow_link"""
    seed: int
    lr_scale: float
    seconds: float
    """Of training."""
    replicas: int = 2
    lora_rank: int = RANK
    every_s: float = EVERY_S
    """Between two snapshots of a rank's adapter."""
    machines: tuple[int, ...] = ()
    """Processes whose network namespaces are the ranks' machines, and one more for a store of theirs; none: all ranks
    are on this machine."""

    def address(self, rank: int) -> str:
        """Of a rank's machine, as the others reach it."""
        return f"10.204.0.{rank + 1}" if self.machines else "127.0.0.1"

    def device_s(self, rank: int) -> float:
        """What a step takes: the last rank is the straggler."""
        slow = self.scenario == "straggler4x" and rank == self.replicas - 1
        return DEVICE_S * (SLOWER if slow else 1.0)


def text(style: str, seed: str, length: int) -> bytes:
    """Sentences of a kind."""
    draw = random.Random(f"{style}:{seed}")
    parts: list[str] = []
    size = 0
    while size < length:
        count, price = draw.randint(2, 9), draw.randint(2, 9)
        words = {"who": draw.choice(_PEOPLE), "where": draw.choice(_PLACES), "what": draw.choice(_GOODS)}
        parts.append(_STYLES[style].format(**words, count=count, price=price, total=count * price))
        size += len(parts[-1])
    return "".join(parts).encode()


def batches(style: str, seed: str, size: int = BATCH) -> Iterator[Tensor]:
    """Token ids [size, LENGTH] without end, int64."""
    corpus = torch.tensor(list(text(style, seed, 200_000)))
    draw = torch.Generator().manual_seed(random.Random(seed).getrandbits(31))
    while True:
        starts = torch.randint(0, len(corpus) - LENGTH, (size,), generator=draw)
        yield torch.stack([corpus[start : start + LENGTH] for start in starts])


def make_base(path: Path) -> None:
    """Train the base model and write it, unless it is there: 600 steps of 8 sequences."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if (path / "config.json").exists():
        return
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, **HEADS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step, ids in zip(range(PRETRAIN_STEPS), batches("base", "pretrain", 8), strict=False):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / PRETRAIN_STEPS)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(path)


def lora(base: Path, seed: int, rank: int = RANK) -> nn.Module:
    """The base with a LoRA, the same on every rank of a run."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    alpha = ALPHA // RANK * rank
    return get_peft_model(load(base), LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS))


def load(base: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def sent_bytes() -> int:
    """Sent by this machine so far, by all but its loopback device."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()[2:]
    return sum(int(line.split()[9]) for line in lines if not line.strip().startswith("lo:"))


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@dataclass
class Run:
    """One rank's training: its batches, its device, its clock, and snapshots of its adapter for the score."""

    job: Job
    rank: int
    base: Path
    meet: Callable[[], None]
    """A barrier of all ranks: training begins there."""
    shared: Path
    """A folder that all ranks of the run see."""
    model: nn.Module | None = None
    """What is scored."""
    steps: int = 0
    compute_s: list[float] = field(default_factory=list)
    """What the forward passes took before they were stretched."""
    snapshots: list[tuple[float, dict[str, Tensor]]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def lr(self) -> float:
        return LR * self.job.lr_scale

    def lora(self) -> nn.Module:
        """The model to train, the same on every rank."""
        return lora(self.base, self.job.seed, self.job.lora_rank)

    def address(self, rank: int | None = None) -> str:
        """Of a rank's machine, our own by default."""
        return self.job.address(self.rank if rank is None else rank)

    @property
    def slow(self) -> bool:
        """Whether this rank is the straggler."""
        return self.job.device_s(self.rank) > DEVICE_S

    def losses(
        self, forward: Callable[..., Any], model: nn.Module, before_score: Callable[[], None] = lambda: None
    ) -> Iterator[Tensor]:
        """The loss of one step after the other. The peer's loop does the rest.

        Rank 0 ends when its time is over, and posts its score. The others go on until they are ended: a peer whose
        ranks wait for each other must not wait for one that has left.

        Args:
            forward: What the peer calls: the model, or what it has wrapped around it.
            model: The model with the adapter that is scored.
            before_score: Called before the eval loss is measured.
        """
        self.model = model
        device_s, data = self.job.device_s(self.rank), batches("tuned", f"{self.job.seed}:{self.rank}")
        self.meet()
        sent = sent_bytes()
        started_s, due_s = time.monotonic(), 0.0
        while (now_s := time.monotonic() - started_s) < self.job.seconds or self.rank:
            if now_s >= due_s:
                self._keep(now_s)
                due_s = now_s + self.job.every_s
            ids = next(data)
            begun_s = time.monotonic()
            loss = forward(input_ids=ids, labels=ids).loss
            self.compute_s.append(time.monotonic() - begun_s)
            time.sleep(max(0.0, device_s - self.compute_s[-1]))
            yield loss
            self.steps += 1
        self._keep(now_s)
        self.notes["sent_bytes"] = sent_bytes() - sent if self.job.machines else None
        before_score()
        ordered = sorted(self.compute_s)
        computed = {"median": ordered[len(ordered) // 2], "p95": ordered[int(len(ordered) * 0.95)]}
        self.post("result", json.dumps({"curve": self.curve(), "compute_s": computed, "notes": self.notes}))

    def _keep(self, now_s: float) -> None:
        if now_s < self.job.seconds or self.rank == 0:
            self.post(f"steps{self.rank}", str(self.steps))
        if self.rank == 0:
            state = {name: p.detach().clone() for name, p in self.model.named_parameters() if "lora_" in name}
            self.snapshots.append((now_s, state))

    def curve(self) -> list[tuple[float, float]]:
        """(seconds, eval loss) of every snapshot; measured after training, so that it costs no run any time."""
        data = next(batches("tuned", "eval", EVAL_SEQUENCES))
        parameters = dict(self.model.named_parameters())
        points = []
        self.model.eval()
        with torch.no_grad():
            for now_s, state in self.snapshots:
                for name, values in state.items():
                    parameters[name].copy_(values)
                points.append((round(now_s, 3), float(self.model(input_ids=data, labels=data).loss)))
        return points

    def post(self, name: str, value: str) -> None:
        """Tell the other ranks something."""
        path = self.shared / name
        path.with_suffix(".part").write_text(value)
        path.with_suffix(".part").rename(path)

    def ask(self, name: str, timeout_s: float = 60.0) -> str:
        """What another rank has posted."""
        deadline_s = time.monotonic() + timeout_s
        while not (self.shared / name).exists():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"nobody has posted {name}")
            time.sleep(0.02)
        return (self.shared / name).read_text()


if __name__ == "__main__":
    make_base(Path(sys.argv[1]))
