"""How much memory a process has used at most."""

import sys

import torch

if sys.platform != "win32":
    import resource


def peak_memory_gib(device: torch.device) -> tuple[float | None, str]:
    """Return the largest memory so far in GiB, and whose it is; None where the system is silent.

    On a CUDA device it is what tensors used there, otherwise the memory of this process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30, f"tensors on {device}"
    if sys.platform == "win32":
        return None, "not measured on Windows"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, "process"
