"""A moving average of the weights, which is what gets validated where it is kept."""

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """The exponential moving average of a model's weights: average = d average + (1 - d) weights.

    It starts from the initial weights, so that its state is a state dict like the model's and
    nothing has to be counted. Buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self._averaged.requires_grad_(requires_grad=False)
        self._averaged.n_averaged.fill_(1)  # 0 would copy the weights at the first update

    @property
    def model(self) -> nn.Module:
        """The model with the averaged weights."""
        return self._averaged.module

    def update(self, model: nn.Module) -> None:
        """Take in the weights after one optimiser step that was not skipped."""
        self._averaged.update_parameters(model)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights under the model's own keys."""
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from averaged weights."""
        self.model.load_state_dict(state)
