"""What a newcomer gets from the donor of its epoch besides the anchors: the fleet's optimizer state in gradient mode.

It is part of the agreed state: a replica that stepped with other moments would come to other anchors. It travels as
safetensors in the epoch's own group.
"""

from __future__ import annotations

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from .checkpoint import Tensors, moments, restore
from .collective import CollectiveError, Group
from .gradient import GradientUpdate
from .update import UpdateRule

LARGEST = 16
"""No optimizer keeps more than so many numbers for each that it trains."""
HEAD_BYTES = 1 << 20
"""Room for the names, whatever the size of the pool."""


def hand_over(group: Group, root: int, update: UpdateRule) -> Tensors | None:
    """The donor's fleet moments; None in local mode, where moments are everybody's own. A collective of the group.

    Raises:
        CollectiveError: it broke, or what came cannot be moments.
    """
    if not isinstance(update, GradientUpdate):
        return None
    data = save(moments(update.optimizer)) if group.rank == root else b""
    size = torch.tensor([len(data)])
    group.broadcast(size, root)
    if not 0 < int(size) <= LARGEST * update.anchor.numel() * update.anchor.element_size() + HEAD_BYTES:
        raise CollectiveError(f"the donor's optimizer state has {int(size)} bytes")
    frame = torch.frombuffer(bytearray(data or int(size)), dtype=torch.uint8)
    group.broadcast(frame, root)
    try:
        return dict(load(frame.numpy().tobytes()))
    except SafetensorError as error:
        raise CollectiveError(f"the donor's optimizer state is not whole: {error}") from error


def take_over(update: UpdateRule, tensors: Tensors | None) -> None:
    """Step with these moments from now on.

    Raises:
        CollectiveError: they are another optimizer's.
    """
    if tensors is None or not isinstance(update, GradientUpdate) or update.optimizer is None:
        return
    if not restore(update.optimizer, tensors):
        raise CollectiveError("the donor's optimizer state is another optimizer's")
