"""FSDP2 inside a replica: whole copies of adapters whose live values are sharded over all workers.

`fully_shard` cuts every parameter by rows and gives each worker some of them. The pool works on whole, plain *copies*
of the parameters. After each `fill` worker 0's copies hold all values, and the aggregator reads those. After `take`
another worker's copies hold its own rows; their other rows are undefined. `give` writes a change of the copies into
the shards.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from tsugi_kpool.errors import ConfigError

from .inside import Inside


class Shards:
    """The copies of a model's sharded parameters.

    Args:
        inside: The workers of this replica.
    """

    def __init__(self, inside: Inside) -> None:
        self._inside = inside
        self._live: list[DTensor] = []
        self._full_copies: list[nn.Parameter] = []
        self._arrived: list[Tensor] = []

    def __bool__(self) -> bool:
        return bool(self._live)

    def full_copy(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return the plain copy that replaces a sharded parameter; any other parameter is returned as it is.

        Raises:
            ConfigError: it is sharded otherwise than by rows over the workers of the replica.
        """
        if not isinstance(parameter, DTensor):
            return parameter
        mesh, placements = parameter.device_mesh, parameter.placements
        ours = mesh.ndim == 1 and mesh.size() == self._inside.workers and mesh.get_local_rank() == self._inside.worker
        if not ours or placements != (Shard(0),):
            raise ConfigError(
                [
                    f"a trained parameter is laid out as {placements} over {mesh.size()} processes: inside a replica "
                    "only fully_shard over all of its workers is supported, by rows"
                ]
            )
        shard = local(parameter)
        full_copy = nn.Parameter(torch.zeros(parameter.shape, dtype=parameter.dtype, device=shard.device))
        self._live.append(parameter)
        self._full_copies.append(full_copy)
        return full_copy

    @torch.no_grad()
    def gather(self, gradients: bool = False) -> None:
        """Gather everybody's rows, of the values or of their gradients, on worker 0. A collective."""
        shards = [_gradient(live) if gradients else local(live) for live in self._live]
        packed = torch.cat([shard.reshape(-1) for shard in shards])
        rooms = [
            _rows(full_copy, 0, self._inside.workers).numel() for full_copy in self._full_copies
        ]  # nobody has more rows than 0
        self._arrived = self._inside.gather(nn.functional.pad(packed, (0, sum(rooms) - packed.numel())))

    @torch.no_grad()
    def fill(self, gradients: bool = False) -> None:
        """Write what has been gathered into the copies. Worker 0 only."""
        for worker, packed in enumerate(self._arrived):
            start = 0
            for full_copy in self._full_copies:
                rows = _rows(_gradient_of(full_copy) if gradients else full_copy.data, worker, self._inside.workers)
                rows.copy_(packed[start : start + rows.numel()].view(rows.shape))
                start += rows.numel()
        self._arrived = []

    def forget_gradients(self) -> None:
        """Drop the copies' gradients."""
        for full_copy in self._full_copies:
            full_copy.grad = None

    @torch.no_grad()
    def take(self) -> None:
        """Make our rows of the copies equal to the shards."""
        torch._foreach_copy_(self._own_rows(), [local(live) for live in self._live])

    @torch.no_grad()
    def give(self) -> None:
        """Make the shards equal to our rows of the copies."""
        torch._foreach_copy_([local(live) for live in self._live], self._own_rows())

    def _own_rows(self) -> list[Tensor]:
        return [_rows(full_copy.data, self._inside.worker, self._inside.workers) for full_copy in self._full_copies]


def whole(parameter: Tensor) -> Tensor:
    """Return all of a parameter's values. Where it is sharded they are gathered: a collective of all workers."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _rows(values: Tensor, worker: int, workers: int) -> Tensor:
    """Return a worker's rows of a whole tensor, cut as torch.chunk and fully_shard do: the last workers may have
    none."""
    size = -(-values.shape[0] // workers)
    return values[worker * size : (worker + 1) * size]


def local(parameter: Tensor) -> Tensor:
    """Return what this worker holds of a parameter."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _gradient(parameter: DTensor) -> Tensor:
    gradient = parameter.grad
    return local(gradient) if isinstance(gradient, DTensor) else torch.zeros_like(local(parameter))


def _gradient_of(full_copy: nn.Parameter) -> Tensor:
    if full_copy.grad is None:
        full_copy.grad = torch.zeros_like(full_copy)
    return full_copy.grad
