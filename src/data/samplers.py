"""Which clips make which batch, as a function of seed, epoch and position alone."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

ORDER_STREAM, SAMPLE_STREAM = 0, 1  # keep the two uses of a seed apart

Key = tuple[int, int]  # epoch, index


def epoch_order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """Return the order of an epoch: int64 [num_samples], each index once."""
    return np.random.default_rng([ORDER_STREAM, seed, epoch]).permutation(num_samples)


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the generator of one sample's random choices."""
    return np.random.default_rng([SAMPLE_STREAM, seed, epoch, index])


class ClipBatchSampler(Sampler[list[Key]]):
    """Micro-batches of (epoch, index) keys for one rank.

    All ranks together walk through one endless stream: the permutation of epoch 0, then of epoch 1,
    and so on; a global batch may cross the edge of an epoch. Step s takes the positions
    [s * G, (s + 1) * G) with G = batch_size * accumulation * world_size. Of these, micro-batch a of
    rank r gets the ones from (a * world_size + r) * batch_size on. So the same G gives the same
    global batches however it is split, and any step can be started at directly.

    Args:
        num_samples: clips in the data set.
        seed: of the order.
        batch_size: clips per micro-batch.
        accumulation: micro-batches per optimizer step.
        rank: this process.
        world_size: number of processes.
        start_step: first optimizer step.
        num_steps: optimizer steps to make from there on.

    Raises:
        ValueError: an empty data set or an impossible number.
    """

    def __init__(
        self,
        num_samples: int,
        seed: int,
        *,
        batch_size: int,
        accumulation: int,
        rank: int,
        world_size: int,
        start_step: int = 0,
        num_steps: int,
    ) -> None:
        if min(num_samples, batch_size, accumulation, world_size) < 1:
            raise ValueError(
                "expected at least 1 of each, got "
                f"num_samples={num_samples}, batch_size={batch_size}, "
                f"accumulation={accumulation}, world_size={world_size}"
            )
        if not 0 <= rank < world_size or min(start_step, num_steps, seed) < 0:
            raise ValueError(
                f"expected rank in [0, {world_size}) and numbers >= 0, got rank={rank}, "
                f"start_step={start_step}, num_steps={num_steps}, seed={seed}"
            )
        self.num_samples, self.seed = num_samples, seed
        self.batch_size, self.accumulation = batch_size, accumulation
        self.rank, self.world_size = rank, world_size
        self.start_step, self.num_steps = start_step, num_steps

    def __len__(self) -> int:
        """Return the number of micro-batches."""
        return self.num_steps * self.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        orders: dict[int, np.ndarray] = {}
        for step in range(self.start_step, self.start_step + self.num_steps):
            for micro_batch in range(self.accumulation):
                start = (step * self.accumulation + micro_batch) * self.world_size + self.rank
                positions = range(start * self.batch_size, (start + 1) * self.batch_size)
                yield [self._key(position, orders) for position in positions]

    def _key(self, position: int, orders: dict[int, np.ndarray]) -> Key:
        """Return the clip at a position of the stream; `orders` keeps the latest two epochs."""
        epoch, place = divmod(position, self.num_samples)
        if epoch not in orders:
            orders.pop(epoch - 2, None)
            orders[epoch] = epoch_order(self.seed, epoch, self.num_samples)
        return epoch, int(orders[epoch][place])
