"""How the ranks of a run share the validation frames out among them, finer than by recording."""

from collections.abc import Sequence


def share_out(num_clips: Sequence[int], rank: int, world_size: int) -> list[tuple[int, range]]:
    """Return this rank's part: numbers of recordings with the clips of each.

    All clips of all recordings stand in one row, which is cut into pieces that differ by one clip
    at most. A rank whose piece begins inside a recording also has to run the clips before it that
    reach into it (`blend_clips`), one as a rule. With more ranks than clips some have nothing.

    Args:
        num_clips: Clips in time of each recording.
        rank: This rank.
        world_size: All ranks.
    """
    total = sum(num_clips)
    begin, end = (total * edge // world_size for edge in (rank, rank + 1))
    shares, before = [], 0
    for recording, count in enumerate(num_clips):
        first, last = max(begin - before, 0), min(end - before, count)
        if first < last:
            shares.append((recording, range(first, last)))
        before += count
    return shares
