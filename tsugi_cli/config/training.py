"""What the settings of `train.*` must fulfil together."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec

from .spec import OUT_OF_THE_BASE, Dpo

OURS = ("auto", "adamw", "fleet_adamw")
"""Optimizers that treat every number by itself: they step whatever a pool's values are cut into."""
OF_BITSANDBYTES = ("adamw_8bit", "paged_adamw_8bit", "lion")
MUON_SINCE = (2, 9)
SHORTEST_BETA1 = 0.1
"""As `tsugi_kpool.fleet_adamw` has it, which imports torch."""
DECAY = 0.1
"""Share of the run over which wsd's learning rate falls: what its authors found to be enough (arXiv 2404.06395)."""


def _schedule(
    scheduler: str, warmup: float, decay: float | None, final_lr: float | None, max_steps: int | None
) -> list[str]:
    """What a user wrote about the learning rate's way must have an effect, and room in the run."""
    found = []
    if decay is not None and scheduler != "wsd":
        found.append(f"train.decay={decay:g} is for train.scheduler=wsd, found train.scheduler={scheduler}")
    if final_lr is not None and scheduler == "constant":
        found.append(f"train.final_lr={final_lr:g} means nothing to train.scheduler=constant: give null")
    parts = {"train.warmup": warmup}
    if scheduler == "wsd":
        parts["train.decay"] = DECAY if decay is None else decay
    shares = [part / max_steps if max_steps and part >= 1 else part for part in parts.values()]
    if sum(share for share in shares if max_steps or share < 1) > 1:
        said = " and ".join(f"{key}={part:g}" for key, part in parts.items())
        found.append(f"{said} exceed the run{f' of {max_steps} steps' if max_steps else ''}")
    return found


def chosen(optimizer: str, mode: str, replicas: int) -> str:
    """What `auto` stands for; another name for itself.

    Args:
        optimizer: `train.optimizer`.
        mode: `kpool.mode`.
        replicas: The most that the run may have: they may come and go, and fleet_adamw of one is adamw.
    """
    if optimizer != "auto":
        return optimizer
    return "fleet_adamw" if mode == "local" and replicas > 1 else "adamw"


def trailing(optimizer: str, mode: str, replicas: int) -> list[str]:
    """A note where figures say that what is named ends at a higher loss than `auto` (docs/straggler_tax.md)."""
    if optimizer != "adamw" or chosen("auto", mode, replicas) == "adamw":
        return []
    return [
        f"train.optimizer=adamw takes mean steps up to sqrt({replicas}) times shorter than synchronous ones; "
        "train.optimizer=auto ends at a lower loss with the same train.lr"
    ]


def _optimizer(optimizer: str, mode: str, select_at: str, shards: bool) -> list[str]:
    """Gradient mode steps flat vectors, the same bits on all machines; shards and flat adapters are no matrices."""
    found = []
    if mode != "local" and optimizer == "fleet_adamw":
        found.append(
            "train.optimizer=fleet_adamw is for kpool.mode=local, where every replica steps by itself; in gradient "
            "mode the fleet steps on the mean gradient: take train.optimizer=adamw"
        )
    if optimizer in OURS:
        return found
    where = {"kpool.mode=gradient": mode != "local", "kpool.select_at=train": select_at == "train"}
    where["topology.inside=fsdp2"] = shards
    found += [f"train.optimizer={optimizer} cannot be used with {key}: take adamw" for key in where if where[key]]
    return found


def _in_shards(optimizer: str, mode: str, select_at: str, workers: int, inside: str) -> list[str]:
    return _optimizer(optimizer, mode, select_at, workers > 1 and inside == "fsdp2")


def _rates(ratio: float, embedding_lr: float | None, mode: str, select_at: str) -> list[str]:
    """Rates that differ between A, B and embeddings: these must be parameters of their own."""
    where = [f"kpool.mode={mode}"] if mode != "local" else []
    where += ["kpool.select_at=train"] if select_at == "train" else []
    given = {"train.lora_plus_ratio": ratio != 1, "train.embedding_lr": embedding_lr is not None}
    return [
        f"{key} cannot be used with {place}, which steps flat vectors of adapters"
        for key in given
        if given[key]
        for place in where
    ]


def _batch_tokens(most: int | str | None, max_tokens: int, objective: str, workers: int) -> list[str]:
    if isinstance(most, str):
        if workers == 1:
            return []
        return [
            f"train.batch_tokens=auto is for one worker in each replica, found topology.workers={workers}: workers "
            "go through micro-batches together; give a number"
        ]
    least = max_tokens * (2 if objective == "dpo" else 1)
    if most is None or most >= least:
        return []
    if objective == "dpo":
        return [
            f"train.batch_tokens must not be below twice data.max_tokens={max_tokens}: a pair is two samples, found "
            f"{most}"
        ]
    return [f"train.batch_tokens must not be below data.max_tokens={max_tokens}: a sample is not cut, found {most}"]


def _pairs(objective: str, format: str, packing: bool, train_on: str, label_smoothing: float) -> list[str]:
    """What is made of a user's rows must be what the objective trains on."""
    if objective != "dpo":
        if format != "preference":
            return []
        return ["data.format=preference is for train.objective=dpo, found train.objective=sft"]
    found = []
    if format not in ("auto", "preference"):
        found.append(f"train.objective=dpo trains on preference pairs, found data.format={format}: take auto")
    if packing:
        found.append("data.packing=true cannot be used with train.objective=dpo: pairs are compared side by side")
    if train_on != "all":
        found.append(f"data.train_on={train_on} means nothing to train.objective=dpo: answers are compared whole")
    if label_smoothing:
        found.append(
            "train.label_smoothing is for train.objective=sft; for pairs that may be the wrong way round take "
            "train.dpo.loss_type=robust with train.dpo.label_smoothing"
        )
    return found


def _reference(objective: str, init: object, from_adapter: str | None) -> list[str]:
    """The reference is the model with the LoRA switched off: it must be what training begins with."""
    if objective != "dpo":
        return []
    found = []
    if init in OUT_OF_THE_BASE:
        found.append(
            f"lora.init={init} cannot be used with train.objective=dpo: it changes the base model, which is the "
            "reference"
        )
    if from_adapter is not None:
        found.append(
            "lora.from cannot be used with train.objective=dpo: the reference would be the model before that "
            "adapter; merge it (tsugi export --merge) and train on the result"
        )
    return found


def _dpo(objective: str, beta: float, loss_type: str, label_smoothing: float) -> list[str]:
    """What a user wrote about pairs must have an effect."""
    given = {"train.dpo.beta": beta != Dpo.beta, "train.dpo.loss_type": loss_type != Dpo.loss_type}
    given["train.dpo.label_smoothing"] = bool(label_smoothing)
    if objective != "dpo":
        return [f"{key} is for train.objective=dpo, found train.objective={objective}" for key in given if given[key]]
    if label_smoothing and loss_type != "robust":
        return [f"train.dpo.label_smoothing is for train.dpo.loss_type=robust, found {loss_type}"]
    return []


def _betas(optimizer: str, beta1: float | None, mode: str, replicas: int, spare: int) -> list[str]:
    if beta1 is None:
        return []
    if optimizer == "adafactor":
        return [f"train.beta1={beta1:g} means nothing to train.optimizer=adafactor: give null"]
    if chosen(optimizer, mode, replicas + spare) == "fleet_adamw" and beta1 < SHORTEST_BETA1:
        return [
            f"train.beta1={beta1:g} is too short a memory to tell a gradient from its noise: "
            f"train.optimizer={optimizer} needs at least {SHORTEST_BETA1}, or take train.optimizer=adamw"
        ]
    return []


def allowed(max_bad_batches: float, micro_batches: int) -> int:
    """How many a run may leave out: a share of all, but at least one; or from 1 on the number itself."""
    if max_bad_batches >= 1:
        return int(max_bad_batches)
    return max(1, int(max_bad_batches * micro_batches)) if max_bad_batches else 0


def lacking(optimizer: str) -> list[str]:
    """A text for what this machine must have for such an optimizer and has not."""
    if optimizer in OF_BITSANDBYTES and find_spec("bitsandbytes") is None:
        return [f"train.optimizer={optimizer} needs one more package: pip install 'tsugi[quant]'"]
    if optimizer == "muon" and _release("torch") < MUON_SINCE:
        return [f"train.optimizer=muon needs torch 2.9, found {version('torch')}"]
    return []


def _release(package: str) -> tuple[int, ...]:
    return tuple(int(each) for each in version(package).split("+")[0].split(".")[:2])


TRAIN_RULES: tuple[tuple[tuple[str, ...], Callable[..., list[str]]], ...] = (
    (
        (
            *("train.optimizer", "kpool.mode", "kpool.select_at"),
            *("topology.workers", "topology.inside"),
        ),
        _in_shards,
    ),
    (("train.lora_plus_ratio", "train.embedding_lr", "kpool.mode", "kpool.select_at"), _rates),
    (("train.optimizer", "train.beta1", "kpool.mode", "topology.replicas", "topology.spare"), _betas),
    (("train.batch_tokens", "data.max_tokens", "train.objective", "topology.workers"), _batch_tokens),
    (
        ("train.objective", "data.format", "data.packing", "data.train_on", "train.label_smoothing"),
        _pairs,
    ),
    (("train.objective", "lora.init", "lora.from_adapter"), _reference),
    (("train.objective", "train.dpo.beta", "train.dpo.loss_type", "train.dpo.label_smoothing"), _dpo),
    (("train.scheduler", "train.warmup", "train.decay", "train.final_lr", "train.max_steps"), _schedule),
)
"""The settings that a rule reads, and the rule: a text for everything that is wrong."""
