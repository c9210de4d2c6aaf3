"""How much work is done at once: pieces that fit a cache on a CPU, large pieces on a GPU."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Numbers of array elements, chosen by measurement (benchmarks/vrt.py); no result depends on them.
WINDOW_ELEMENTS = {"cpu": 2**18, "cuda": 2**26}
IMAGE_ELEMENTS = {"cpu": 2**23, "cuda": 2**28}
TAP_ELEMENTS = {"cpu": 2**19, "cuda": 2**28}


def pieces_of(budgets: dict[str, int], device: torch.device, elements_per_item: int) -> int:
    """Return how many items of `elements_per_item` elements are processed at once, at least 1."""
    budget = budgets["cpu"] if device.type == "cpu" else budgets["cuda"]
    return max(1, budget // max(1, elements_per_item))


def recompute(function: Callable[..., Tensor], *args: object) -> Tensor:
    """Call `function` and keep none of its intermediates; backward computes them again.

    Nothing random happens inside the functions given here, so no generator state is saved.
    """
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


def map_pieces(
    function: Callable[..., Tensor], tensors: tuple[Tensor, ...], items: int, keep: bool = True
) -> Tensor:
    """Apply `function` to pieces of `items` entries of the first axis and join the results.

    Args:
        function: takes as many tensors as `tensors` has; independent along the first axis.
        tensors: equally long along the first axis.
        items: entries per piece.
        keep: False drops the intermediates of a piece and computes them again in backward.
    """
    run = function if keep else lambda *args: recompute(function, *args)
    if len(tensors[0]) <= items:
        return run(*tensors)
    pieces = zip(*(tensor.split(items) for tensor in tensors), strict=True)
    return torch.cat([run(*piece) for piece in pieces])
