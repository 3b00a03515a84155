"""What the settings of `train.*` must fulfil together."""

from __future__ import annotations

from collections.abc import Callable

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


def _optimizer(optimizer: str, scale_lr: bool, mode: str) -> list[str]:
    if optimizer != "fleet_adamw":
        return []
    found = []
    if mode != "local":
        found.append(
            "train.optimizer=fleet_adamw is for kpool.mode=local, where every replica steps by itself; in gradient "
            "mode the fleet steps on the mean gradient: take train.optimizer=adamw"
        )
    if scale_lr:
        found.append(
            "train.scale_lr=true is for train.optimizer=adamw; fleet_adamw takes train.lr as the rate of synchronous "
            "steps, as it is"
        )
    return found


TRAIN_RULES: tuple[tuple[tuple[str, ...], Callable[..., list[str]]], ...] = (
    (("train.optimizer", "train.scale_lr", "kpool.mode"), _optimizer),
    (("train.scheduler", "train.warmup", "train.decay", "train.final_lr", "train.max_steps"), _schedule),
)
"""The settings that a rule reads, and the rule: a text for everything that is wrong."""
