"""Where an optimizer's step is, for the hooks that go before it and after it."""

from __future__ import annotations

from enum import Enum, auto


class Step(Enum):
    """Where an optimizer's step is that concerns the pool."""

    NONE = auto()
    OPEN = auto()
    """Local mode: we hold the buffer's lock until the step has ended."""
    MORE = auto()
    """As OPEN, but of passes that have counted already: another optimizer's part of the same step, or a step again on
    the same gradients. What it changes is shipped with the next weight."""
    TAKEN = auto()
    """Gradient mode: the gradients are in the buffer already."""
