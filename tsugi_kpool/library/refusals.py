"""What following a training loop refuses, in which words."""

from __future__ import annotations

import math

from torch.nn.parallel import DistributedDataParallel

from tsugi_kpool.engine.inside import Inside
from tsugi_kpool.errors import ConfigError, TrainingError

WRAPPED_BY_DDP = (
    "the model is wrapped in DistributedDataParallel over {world} processes that are not the workers of one replica: "
    "it would average every gradient at every step and wait for the slowest; call plesio_init before anything makes "
    "the Accelerator, or start one torchrun agent for each replica (docs/library.md)"
)
UNSEEN = "an optimizer steps the pool's parameters, but the model that plesio_init was given was never called"
NO_WEIGHT = (
    "this step has a gradient, but nothing says how many tokens it was computed on, so that it would count for "
    "nothing: {why}; say it with handle.count(tokens) before the step"
)
NO_TENSOR = "the forward passes since the last step had no labels that count, and no tensor among their arguments"
NO_PASS = "it came from no forward pass of the model that plesio_init was given"
CLOSURE = "gradient mode takes the gradients before the step: call step() without a closure"
IN_BACKWARD = (
    "an optimizer steps inside the backward pass (from a gradient's hook): a step of the pool is of whole gradients; "
    "call step() after backward()"
)
OUTSIDE = (
    "the LoRA's values were written to outside of a torch optimizer's step: gradient mode can only train what an "
    "optimizer steps; take mode='local', in which such values count as training"
)
NONSENSE = "the loss is {loss} and would get into everybody's adapters: lower the learning rate, or look at the data"


def refuse_nonsense(loss: float) -> None:
    """Stop before the step of a loss that is not a number.

    Raises:
        TrainingError: it is none.
    """
    if not math.isfinite(loss):
        raise TrainingError(NONSENSE.format(loss=loss))


def refuse_ddp(inside: Inside) -> None:
    """Stop in the forward pass of a model that would average its gradients with other replicas.

    Raises:
        ConfigError: DistributedDataParallel goes round the model, over others than the workers of our replica.
    """
    wrapper = DistributedDataParallel._get_active_ddp_module()  # type: ignore[no-untyped-call, unused-ignore]
    if wrapper is not None and not inside.is_made_of(wrapper.process_group):
        raise ConfigError([WRAPPED_BY_DDP.format(world=wrapper.process_group.size())])
