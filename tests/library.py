"""What the library's tests share: a small pool, an ordinary loop, two replicas as threads of one process."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.optim import optimizer as torch_optimizer

from tests.support import tiny_model
from tsugi_kpool import KPoolLoraConfig, plesio_init
from tsugi_kpool.engine.pool import AdapterPool
from tsugi_kpool.library.session import Session, meet
from tsugi_kpool.world import World

JOIN_S = 100
LOCK_STEP = {
    "mode": "gradient", "k_active": 4, "payload": "fp32", "overlap": False, "trigger": "count", "count": 1,
    "min_steps": 1,
}  # fmt: skip
"""Gradient mode without anything in flight, if the loop waits for its round: large-batch training."""


JOINED = {"payload": "fp32", "min_steps": 1}
"""A fleet of one with these trains as plain PEFT does, to float tolerance."""
PER_BATCH = 22
"""Supervised tokens of `batch`: two rows of twelve."""


def config(**changes) -> KPoolLoraConfig:
    """A small pool with some values changed."""
    values = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "n_adapters": 4, "k_active": 2}
    return KPoolLoraConfig(**{**values, "sideband_addr": "tcp://127.0.0.1:0", **changes})


def pooled_model(settings: LoraConfig, base: Callable = tiny_model):
    """The tiny model with a LoRA whose values are always the same, B included."""
    model = base()
    torch.manual_seed(1)
    model = get_peft_model(model, settings)
    with torch.no_grad():
        for parameter in trained(model):
            parameter.normal_(std=0.05)
    return model


def trained(model) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def rows(model, values: list[torch.Tensor], n: int = 4) -> torch.Tensor:
    """Tensors that belong to a model's trained parameters, as rows of adapters [N, P]."""
    for parameter, value in zip(trained(model), values, strict=True):
        parameter.grad = value.clone()
    return AdapterPool(model, n).gradients()


def batch(seed: int, rows: int = 2) -> torch.Tensor:
    return torch.randint(0, 64, (rows, 12), generator=torch.Generator().manual_seed(seed))


def train(model, steps: int, seed: int = 0) -> None:
    """An ordinary loop."""
    optimizer = torch.optim.AdamW(trained(model), lr=1e-2)
    for step in range(steps):
        ids = batch(100 * seed + step)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def backward(model, seed: int = 0, share: float = 1.0) -> None:
    """Of one batch."""
    ids = batch(seed)
    (share * model(input_ids=ids, labels=ids).loss).backward()


def adamw(model) -> torch.optim.Optimizer:
    return torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)


def steps(model, optimizer, seeds) -> None:
    for seed in seeds:
        backward(model, seed)
        optimizer.step()
        optimizer.zero_grad()


def digest(model) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in trained(model))).hexdigest()


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "tsugi" in thread.name]


class Pair:
    """Two replicas in one process; `run` gives each its thread and returns what each of them met."""

    def __init__(
        self, keys, first: KPoolLoraConfig, second: KPoolLoraConfig | None = None, base: Callable = tiny_model
    ) -> None:
        self.keys, self.settings = keys, (first, second or first)
        self.models = [pooled_model(copy.deepcopy(each), base) for each in self.settings]
        self.handles: list = [None, None]

    def run(self, *bodies) -> list[BaseException | None]:
        errors: list[BaseException | None] = [None, None]

        def replica(number: int) -> None:
            try:
                model, own = self.models[number], self.settings[number]
                with plesio_init(model, own, replica=number, replicas=2, keys=self.keys) as handle:
                    self.handles[number] = handle
                    bodies[number](model, handle)
            except BaseException as error:  # noqa: BLE001
                errors[number] = error

        threads = [threading.Thread(target=replica, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(JOIN_S)
            assert not thread.is_alive()
        return errors

    def engine(self, replica: int):
        return self.handles[replica]._session.engine


@contextlib.contextmanager
def session_of_one(
    keys: Path, model, settings: KPoolLoraConfig, address: str = "tcp://127.0.0.1:0"
) -> Iterator[Session]:
    """A whole fleet of one replica: hub, link, rounds, and the loop's hooks. Drained at the end of the block."""
    session = meet(model, settings.settings(), "default", World(), address, keys)
    try:
        yield session
        session.drain(JOIN_S)
    except BaseException as error:
        session.leave(repr(error))
        raise


def hooks_of(model) -> int:
    found = (torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks)
    return sum(map(len, (*found, model._forward_pre_hooks, model._forward_hooks)))
