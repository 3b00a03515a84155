"""What the members of a new epoch get from its donor: the fleet's own state, as one frame of safetensors.

Anchors, and moments: in gradient mode those of the fleet's optimizer, without which a newcomer's next step would
differ; in local mode those of the donor's own, which are nearer to what a newcomer's will be than none.
"""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from .buffer import ElasticBuffer
from .checkpoint import ANCHOR, Tensors, part, prefixed
from .collective import CollectiveError, Group
from .gradient import GradientUpdate
from .keeper import FLEET, OWN, anchors


def shared(group: Group, root: int, buffer: ElasticBuffer) -> Tensors:
    """The donor's state. A collective of the group: everybody takes part, whoever needs it.

    Args:
        group: The epoch's.
        root: The donor's rank in it.
        buffer: Ours; the donor gives what is in it.

    Raises:
        CollectiveError: somebody has gone, or what came is no such frame.
    """
    frame = torch.zeros(0, dtype=torch.uint8)
    if group.rank == root:
        state = {**anchors(buffer), **prefixed(buffer.moments(), OWN)}
        frame = torch.frombuffer(bytearray(save(state)), dtype=torch.uint8)
    size = torch.tensor([frame.numel()], dtype=torch.int64)
    group.broadcast(size, root)
    if group.rank != root:
        frame = torch.empty(int(size), dtype=torch.uint8)
    group.broadcast(frame, root)
    try:
        tensors: Tensors = load(frame.numpy().tobytes())
    except SafetensorError as error:
        raise CollectiveError(f"the donor's state cannot be read: {error}") from error
    if tensors.get(ANCHOR) is None or tensors[ANCHOR].shape != buffer.update.anchor.shape:
        raise CollectiveError("the donor's anchors are another pool's")
    return tensors


def same(buffer: ElasticBuffer, tensors: Tensors) -> bool:
    """Whether we stand on these anchors."""
    return torch.equal(buffer.update.anchor, tensors[ANCHOR])


def take_over(buffer: ElasticBuffer, tensors: Tensors, version: int) -> None:
    """Begin from this state, which is of this version. What is buffered was trained on another: it is discarded."""
    buffer.adopt(tensors[ANCHOR], version)
    if isinstance(buffer.update, GradientUpdate):
        buffer.update.inherit(part(tensors, FLEET))
    else:
        buffer.inherit(part(tensors, OWN))
