import itertools
import time

import pytest

from src.data.build import ClipBatchSampler
from src.data.transforms import sample_generator


def sampler(num_samples=10, seed=1, **changes):
    settings = {"batch_size": 1, "accumulation": 1, "rank": 0, "world_size": 1, "num_steps": 12}
    return ClipBatchSampler(num_samples, seed, **{**settings, **changes})


def global_batches(num_samples, batch_size, accumulation, world_size, num_steps):
    """The keys of every optimizer step, over all ranks."""
    ranks = [
        list(
            sampler(
                num_samples,
                batch_size=batch_size,
                accumulation=accumulation,
                rank=rank,
                world_size=world_size,
                num_steps=num_steps,
            )
        )
        for rank in range(world_size)
    ]
    return [
        sum(
            (
                ranks[rank][step * accumulation + micro]
                for micro in range(accumulation)
                for rank in range(world_size)
            ),
            [],
        )
        for step in range(num_steps)
    ]


def test_every_epoch_is_a_permutation():
    keys = [key for batch in sampler(batch_size=3, num_steps=10) for key in batch]
    for epoch in range(3):
        assert sorted(index for e, index in keys if e == epoch) == list(range(10))
    orders = [[index for e, index in keys if e == epoch] for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert keys == sorted(keys, key=lambda key: key[0])  # epoch after epoch


def test_global_batches_do_not_depend_on_how_they_are_split():
    splits = [s for s in itertools.product((1, 2, 3, 6), repeat=3) if s[0] * s[1] * s[2] == 6]
    assert len(splits) == 9
    batches = [global_batches(7, *split, num_steps=5) for split in splits]
    assert len({key for batch in batches[0] for key in batch}) == 30  # crosses four epochs
    assert all(other == batches[0] for other in batches)


@pytest.mark.parametrize("start", [0, 1, 4, 11])
def test_f01_seeking_continues_the_stream(start):
    whole = list(sampler(accumulation=3, batch_size=2))
    rest = sampler(accumulation=3, batch_size=2, start_step=start, num_steps=12 - start)
    assert list(rest) == whole[start * 3 :]
    assert len(rest) == (12 - start) * 3


def test_f17_seek_takes_no_time():
    start = time.perf_counter()
    late = sampler(2000, accumulation=6, world_size=8, start_step=10**9, num_steps=1)
    assert len(list(late)) == 6
    assert time.perf_counter() - start < 0.5


def test_sample_generator_depends_on_all_three():
    keys = list(itertools.product((0, 1, 2), repeat=3))
    assert len({sample_generator(*key).integers(2**62) for key in keys}) == 27
