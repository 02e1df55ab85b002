"""Communication among the processes that train one network; a single process agrees with itself and waits for nobody.

Gradients and numbers on the device travel by the default process group (NCCL, or gloo on a CPU); what the processes
tell each other beside them travels by a gloo group of its own, so that no GPU has to wait for it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlparse

import torch
from torch import Tensor

from starfire_cli.data.images.sharing import is_shared_memory_error, shared_memory_error
from starfire_cli.distributed.lifeline import Lifeline
from starfire_cli.errors import BadOption, LostRank, Mismatch, StarfireError
from starfire_cli.runtime import World

if TYPE_CHECKING:
    import torch.distributed as dist

T = TypeVar("T")
MEET = timedelta(minutes=10)  # for the last process to start
_NAMED = 2.0  # seconds to learn which rank it was
_KINDS: dict[str, type[StarfireError]] = {kind.__name__: kind for kind in (BadOption, Mismatch, StarfireError)}
# What gloo, NCCL and torch say when the process at the other end is no more.
_GONE = re.compile("gloo.transport|[Cc]onnection (closed|reset|refused)|Broken pipe|TCPStore|remote process|ncclRemote")


class Ranks:
    """This process among those that train together. `Ranks()` is one alone; `join` makes one of several.

    Args:
        world: its number, and how many they are.
    """

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World()
        self.rank, self.count = self.world.rank, self.world.size
        self._group: dist.ProcessGroup | None = None
        self._lifeline = Lifeline(self.rank, self._last_words)
        self._what_is_left: Callable[[], str] = str
        self._asked: tuple[Tensor, dist.Work] | None = None

    @property
    def first(self) -> bool:
        """Whether this one writes and prints."""
        return self.rank == 0

    def join(self) -> None:
        """Meet the others. Raises StarfireError where they cannot be reached."""
        if self.count == 1:
            return
        import torch.distributed as dist
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]
        from torch.distributed.rendezvous import rendezvous

        both = torch.cuda.is_available() and dist.is_nccl_available()
        try:
            store, _, _ = next(rendezvous(self.world.address, self.rank, self.count, timeout=MEET))
            # torchrun keeps its store over restarts: what an earlier attempt left there is not for this one.
            attempt = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}-{self.count}"
            prefixed = PrefixStore(attempt, store)
            host = urlparse(self.world.address).hostname or os.environ.get("MASTER_ADDR", "localhost")
            self._lifeline.open(prefixed, host)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if both else "gloo",
                store=prefixed,
                rank=self.rank,
                world_size=self.count,
            )
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)
            self._group = group
        except (RuntimeError, ValueError, OSError) as error:
            said = str(error).strip().partition("\n")[0][:300]
            if self._lifeline.lost:
                raise LostRank(self._lost(said)) from error
            raise StarfireError(
                f"rank {self.rank} cannot meet the other {self.count - 1} processes at {self.world.address} ({said})"
            ) from error

    def leave(self) -> None:
        """Part from the others, once all have come here."""
        if self._group is None:
            return
        import torch.distributed as dist

        if self._asked is not None:
            self._asked[1].wait()
            self._asked = None
        dist.barrier(group=self._group)
        self._lifeline.leave()
        dist.destroy_process_group()
        self._group = None

    def undisturbed(self) -> contextlib.AbstractContextManager[None]:
        """For a checkpoint that is being written: the end of another rank does not end this one meanwhile."""
        return self._lifeline.undisturbed()

    def own_seed(self, seed: int, step: int = 0) -> int:
        """A seed for what this rank draws by itself from `step` on; rank 0's at the start is `seed`."""
        return (seed + self.rank * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9) % 2**63

    def gathered(self, value: T) -> list[T]:
        """Every rank's `value`, plain values, in order of ranks."""
        if self._group is None:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=self._group)
        return found

    def totals(self, *numbers: float) -> list[float]:
        """The sums over all ranks, in float64; equal on all of them."""
        if self._group is None:
            return list(numbers)
        import torch.distributed as dist

        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums, group=self._group)
        return sums.tolist()

    def average(self, tensors: list[Tensor]) -> list[Tensor]:
        """The mean over all ranks of each tensor, in its dtype; computed in float64, so that equal ones stay equal."""
        if self._group is None or not tensors:
            return tensors
        import torch.distributed as dist

        flat = torch.cat([tensor.detach().double().reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        parts = torch.split(flat / self.count, [tensor.numel() for tensor in tensors])
        return [part.reshape(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]

    def take_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors of equal shapes by rank 0's."""
        if self._group is None:
            return
        import torch.distributed as dist

        for tensor in tensors:
            if tensor.numel():
                dist.broadcast(tensor, 0)

    def stop(self, number: int) -> int:
        """The highest number that any rank gave; with several ranks, in the call before this one.

        Nobody waits for the slowest that way, and all get the same answer at the same step.
        """
        if self._group is None:
            return number
        import torch.distributed as dist

        answer = 0
        if self._asked is not None:
            numbers, work = self._asked
            work.wait()
            answer = int(numbers)
        numbers = torch.tensor(number)
        work = dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._asked = numbers, work
        return answer

    def first_difference(self, numbers: Tensor) -> tuple[int, int] | None:
        """The first rank whose int64 `numbers`, (N,), are not rank 0's, and the first place; None if there is none."""
        if self._group is None or not len(numbers):
            return None
        import torch.distributed as dist

        rows = [torch.empty_like(numbers) for _ in range(self.count)]
        dist.all_gather(rows, numbers, group=self._group)
        for rank, row in enumerate(rows):
            if not torch.equal(row, rows[0]):
                return rank, int((row != rows[0]).nonzero()[0])
        return None

    def only_first(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 alone and return its result on every rank; an error there is one everywhere."""
        found: list[T] = []
        self._agreed(lambda: found.append(work()) if self.first else None)
        return self.gathered(found)[0][0]

    def in_turn(self, work: Callable[[], T]) -> T:
        """Run `work` on every rank, first on one of each machine: what that leaves on its disk, the others find.

        An error of one is an error of all. `work` must not wait for other ranks.
        """
        found: list[T] = []
        for turn in (True, False):
            mine = turn == (self.world.local_rank == 0)
            if self.count > 1 or mine:
                self._agreed(lambda mine=mine: found.append(work()) if mine else None)  # type: ignore[misc]
        return found[0]

    @contextlib.contextmanager
    def explaining(self, what_is_left: Callable[[], str] = str) -> Iterator[None]:
        """Turn what torch says when another process is gone into LostRank, which also says `what_is_left()`.

        Whatever ends this rank in here, the others are told.
        """
        if self.count == 1:
            yield
            return
        outside, self._what_is_left = self._what_is_left, what_is_left
        try:
            yield
        except RuntimeError as error:
            if _GONE.search(f"{type(error).__name__} {error}") or self._lifeline.lost:
                self._lifeline.cause(_NAMED)
                said = str(error).strip().partition("\n")[0].rpartition("] ")[2][:120]
                told = LostRank(self._lost(said))
                self._lifeline.leave(str(told))
                raise told from error
            told = shared_memory_error(error) if is_shared_memory_error(error) else error  # type: ignore[assignment]
            self._lifeline.leave(_in_a_line(told))
            raise told from error
        except BaseException as error:
            self._lifeline.leave(_in_a_line(error))
            raise
        finally:
            self._what_is_left = outside

    def _lost(self, said: str) -> str:
        """The text for a lost rank: which it is, as far as is known, and what is left; `said` is torch's own text."""
        lost = self._lifeline.lost
        if lost is None:
            who = (
                f"another of the {self.count} processes has ended ({said}); its own message, or that of what started "
                "them, says why"
            )
        elif lost.why:
            who = f"rank {lost.rank} has ended: {lost.why.rstrip('.')}"
        else:
            who = f"rank {lost.rank} has ended without a word (it was killed, or its machine is gone)"
        return f"{who}. {self._what_is_left()}".rstrip()

    def _last_words(self) -> str:
        return f"rank {self.rank} of {self.count}: {self._lost('')}"

    def _agreed(self, work: Callable[[], object]) -> None:
        """Run `work`; where it failed on some rank, raise on all."""
        if self._group is None:
            work()
            return
        problem: Exception | None = None
        try:
            work()
        except Exception as error:  # noqa: BLE001 - the others would wait for this rank for good
            problem = error
        told = self.gathered(None if problem is None else (type(problem).__name__, str(problem)))
        failed = [(rank, *said) for rank, said in enumerate(told) if said is not None]
        if problem is not None and not isinstance(problem, StarfireError):
            raise problem
        if not failed:
            return
        rank, kind, text = failed[0]
        if kind not in _KINDS:
            raise LostRank(f"rank {rank} of {self.count} has failed: {kind}: {text}")
        shared = _KINDS[kind](text if rank == 0 else f"rank {rank} of {self.count}: {text}")
        shared.agreed = True
        raise shared from problem


def _in_a_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0][:300]
    return text if isinstance(error, StarfireError) else f"{type(error).__name__}: {text}".rstrip(": ")
