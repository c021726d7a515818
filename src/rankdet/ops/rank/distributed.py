"""One ranking over several processes: what they have to tell each other.

Each process holds some of the scores. To rank its own among those of all it needs the positives
of all processes, since these make the knots, and how many negatives of all processes each bin
between the knots holds. So it sends its positives, and then the sums over its negatives:

    for K numbers of each of P positives   8 K P bytes and padding   `gather_ragged`
    for the 2 P + 1 bins                   32 P bytes                `add_bins`

and a few bytes of sizes before. The number of negatives does not come into it.

Whatever is called here is a collective: it returns once every process of the group has called it.
The data decide nothing about which calls are made. A process without positives, without
negatives or without any score makes the same calls as the others. What the caller has to see to:

- all processes of the group rank equally often, in the same order, with the same loss and
  settings, whatever their images hold; nobody leaves out a batch that has no objects;
- no other thread of a process uses the same group meanwhile;
- nothing is computed again in the backward pass that ranks (`torch.utils.checkpoint`), where the
  exchange of gradients would come between.

A process that fails on the way leaves the others waiting, as with any collective, until the group
gives up. So faults in the data that only one process can see are told to all: `announce_fault`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Ranking = Literal["local", "global"]
"""Whether each process ranks what it has, or all processes rank together."""

_FAULT = -1


class Processes(Protocol):
    """Those who share a ranking, seen from one of them; both methods are collectives."""

    @property
    def rank(self) -> int:
        """Which of them this is, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many they are."""
        ...

    def gather(self, values: Tensor) -> Tensor:
        """Return what all gave, [size, ...] in the order of their ranks; all of one shape."""
        ...

    def add(self, values: Tensor) -> Tensor:
        """Return the sum of what all gave, of one shape; the same bits for everybody."""
        ...


class GroupProcesses:
    """The processes of a group of `torch.distributed`.

    Args:
        group: what `torch.distributed.new_group` returns, or ``torch.distributed.group.WORLD``.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group
        # Asked now, so that a group that this process does not belong to is noticed here.
        self._rank, self._size = group.rank(), group.size()

    @property
    def rank(self) -> int:
        """Which of them this is, from 0."""
        return self._rank

    @property
    def size(self) -> int:
        """How many they are."""
        return self._size

    def gather(self, values: Tensor) -> Tensor:
        """Return what all gave, [size, ...] in the order of their ranks; all of one shape."""
        gathered = values.new_empty(self._size * values.numel())
        distributed.all_gather_into_tensor(gathered, values.reshape(-1), group=self._group)
        return gathered.view(self._size, *values.shape)

    def add(self, values: Tensor) -> Tensor:
        """Return the sum of what all gave, of one shape; the same bits for everybody."""
        total = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=self._group)
        return total


def processes_of(group: ProcessGroup | Processes) -> Processes:
    """Return who takes part, given as a group of `torch.distributed` or already as `Processes`.

    Raises:
        TypeError: it is neither, or this process does not belong to the group.
    """
    if distributed.is_available() and isinstance(group, distributed.ProcessGroup):
        return GroupProcesses(group)
    if not all(hasattr(group, name) for name in ("rank", "size", "gather", "add")):
        raise TypeError(
            f"group must be a group of torch.distributed that this process belongs to, or None, "
            f"got {group!r}"
        )
    processes: Any = group
    found: Processes = processes
    return found


def group_of(ranking: Ranking) -> Processes | None:
    """Return who ranks together at present: all processes if "global" and there are several.

    Returns:
        None where a process ranks alone: "local", or there is no other one.
    """
    alone = not (distributed.is_available() and distributed.is_initialized())
    if ranking == "local" or alone or distributed.get_world_size() == 1:
        return None
    whole = distributed.group.WORLD
    assert whole is not None
    return GroupProcesses(whole)


class Gathered(NamedTuple):
    """What all processes gave, P columns in all."""

    values: Tensor
    """[K, P] process by process, in the order of their ranks."""
    own: slice
    """The columns of this process."""


@torch.no_grad()
def gather_ragged(values: Tensor, processes: Processes) -> Gathered:
    """Put the columns of all processes side by side.

    The sizes go first, 8 bytes from each process. Then each sends K times the largest number of
    columns that any of them has; if none has any, nothing more is sent. The host waits for the
    device once, for the sizes.

    Args:
        values: [K, P_r] any dtype, P_r of them on this process, zero or more; K and the dtype
            are the same on all processes.
        processes: who takes part.

    Returns:
        All of them, copied bit by bit, and so the same on every process.

    Raises:
        ValueError: another process called `announce_fault` instead.

    Gradient: none.
    """
    sets, count = values.shape
    sizes = _exchange_sizes(count, processes, values.device)
    if _FAULT in sizes:
        faulty = [str(rank) for rank, size in enumerate(sizes) if size == _FAULT]
        raise ValueError(
            f"nothing can be ranked over all processes: the input of process "
            f"{', '.join(faulty)} is faulty; its own message says how"
        )
    begin, longest = sum(sizes[: processes.rank]), max(sizes)
    own = slice(begin, begin + count)
    if longest == 0:
        return Gathered(values, own)
    padded = values.new_zeros(sets, longest)
    padded[:, :count] = values
    parts = processes.gather(padded)
    joined = torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)
    return Gathered(joined, own)


def announce_fault(processes: Processes, device: torch.device) -> None:
    """Take part in `gather_ragged` without anything to give, so that all processes raise.

    To be called before an error is raised that the other processes know nothing of.
    """
    _exchange_sizes(_FAULT, processes, device)


@torch.no_grad()
def add_bins(
    number: Tensor, beyond: Tensor, finite: Tensor, processes: Processes
) -> tuple[Tensor, Tensor, Tensor]:
    """Add up the contents of the bins of all processes, in one exchange.

    Args:
        number: [C] int64, below 2^53, how many scores each bin holds.
        beyond: [C] float64, sum of their distances to the knot just below.
        finite: 0-d bool, whether all scores are finite.
        processes: who takes part; all have the same bins.

    Returns:
        The sums of the first two, and whether the scores of all processes are finite. The counts
        are exact. `Processes.add` makes all three the same on every process.

    Gradient: none.
    """
    # float64 holds these counts exactly, and one exchange costs less than three.
    together = torch.cat([number.double(), beyond, (~finite).double().view(1)])
    number_sum, beyond_sum, bad = processes.add(together).split([len(number), len(beyond), 1])
    return number_sum.to(number.dtype), beyond_sum, bad.view(()) == 0


def carry(value: Tensor, part: Tensor) -> Tensor:
    """Return a value that all processes share, with the gradient of this process's part in it.

    Args:
        value: any shape, the same on all processes; taken as constant.
        part: of the same shape, times the number of processes: then the mean over the processes
            of all gradients is that of the value.

    Gradient: that of ``part``.

    >>> mine = torch.tensor(2.0, requires_grad=True)
    >>> whole = carry(torch.tensor(5.0), 2 * mine)
    >>> whole.item(), torch.autograd.grad(whole, mine)[0].item()
    (5.0, 2.0)
    """
    carried: Tensor = _Carry.apply(value, part)
    return carried


class _Carry(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, value: Tensor, part: Tensor) -> Tensor:
        return value.detach().to(part.dtype, copy=True)

    @staticmethod
    def backward(_ctx: Any, *grads: Any) -> Any:
        return None, grads[0]


def _exchange_sizes(size: int, processes: Processes, device: torch.device) -> list[int]:
    # `full` runs on the device; a tensor made from the number would be copied there.
    sizes = processes.gather(torch.full((1,), size, dtype=torch.int64, device=device))
    found: list[int] = sizes.view(-1).tolist()
    return found
