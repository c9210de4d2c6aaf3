"""Number formats of a training step: float32, bfloat16, or float16 with a gradient scaler."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """The format in which the model's blocks compute; parameters stay float32."""

    name: str
    device_type: str

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The autocast format, or None for float32."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[self.name]

    def autocast(self) -> AbstractContextManager:
        """Return the autocast context of this format; for float32 it does nothing."""
        return torch.autocast(
            self.device_type, self.autocast_dtype, enabled=self.autocast_dtype is not None
        )

    def scaler(self) -> torch.amp.GradScaler:
        """Return a gradient scaler; only float16 needs it, elsewhere it passes values through."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "fp16")


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the precision that TRAIN.AMP stands for on `device`.

    Raises:
        ValueError: The device cannot compute in the format that is asked for.
    """
    if device.type == "cpu":
        if name in ("fp16", "bf16"):
            # bf16: torch's 3D convolutions on CPUs then give gradients of small maps that hold
            # whatever was in memory before (seen with torch 2.15; the first ones are infinite).
            raise ValueError(f"TRAIN.AMP {name} needs a GPU; on a CPU use auto or fp32")
        return Precision("fp32", "cpu")
    has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    if name == "bf16" and not has_bf16:
        raise ValueError(
            f"TRAIN.AMP bf16 is not supported by {torch.cuda.get_device_name(device)}; "
            "use auto or fp16"
        )
    if name == "auto":
        name = "bf16" if has_bf16 else "fp16"
    return Precision(name, "cuda")
