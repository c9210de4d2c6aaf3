"""`torch.compile` for the parts of a model that repeat: TRAIN.COMPILE, `src/test.py --compile`.

Only what is made of many small operations is compiled: the MLPs of VRT's blocks and stages, those
of the attention over time, and the residual blocks of the spike encoder. Attention and deformable
convolution have kernels of their own. Compiling whole stages took minutes for each of them; the
parts here share their code, so three functions are compiled, for a few shapes each.
"""

import logging
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from src.models.spike_encoder3d import ResidualBlock3D

VRT_PARTS = ("GatedMlp",)  # names of classes: an upstream VRT has others and stays as it is
BACKEND = "inductor"
MAX_VARIANTS = 64  # of one function: widths, shapes, with and without gradients
logger = logging.getLogger(__name__)


def compile_parts(model: nn.Module) -> int:
    """Compile the repeated parts of a model in place; return how many there are.

    Each part is compiled when it first runs. The keys of the state dict stay. A deep copy, such as
    the average of the weights, is not compiled.
    """
    import torch._dynamo  # noqa: PLC0415 (2.4 s, needed here only)

    torch._dynamo.config.cache_size_limit = MAX_VARIANTS
    parts = [
        part
        for name, part in model.named_modules()
        if type(part).__name__ in VRT_PARTS
        or isinstance(part, ResidualBlock3D)
        or (isinstance(part, nn.Sequential) and name.rpartition(".")[2] in ("mlp", "ffn"))
    ]
    for part in parts:
        # Maps change in height and width together: with symbols for both inductor can fail.
        part.compile(backend=BACKEND, dynamic=False if isinstance(part, ResidualBlock3D) else None)
    return len(parts)


def compile_and_time(models: Sequence[nn.Module], run: Callable[[], object], key: str) -> None:
    """Compile the parts of models and log what it costs and gains, by four calls of `run`.

    Raises:
        RuntimeError: The compiler does not work; the message names `key` as the way out.
    """
    _seconds(run)  # the first call chooses kernels, fills caches
    before = _seconds(run)
    num_parts = sum(map(compile_parts, models))
    try:
        first = _seconds(run)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        from torch._inductor.runtime.runtime_utils import cache_dir  # noqa: PLC0415 (as above)

        raise RuntimeError(
            f"{key}: torch.compile does not work here ({str(error).strip().splitlines()[0]}); it "
            "needs a C++ compiler such as g++, and on a GPU Triton; install them, remove "
            f"{cache_dir()} if compiling was interrupted before, or do without {key}"
        ) from error
    after = _seconds(run)
    logger.info(
        "%d parts are compiled: the first run took %.1f s; now %.3f s in place of %.3f, %.2f times "
        "as fast",
        *(num_parts, first, after, before, before / after),
    )


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
