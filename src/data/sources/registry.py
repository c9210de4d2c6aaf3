"""The downloaded data sets that `scripts/prepare_data.py --source` understands."""

from collections.abc import Callable, Mapping

from src.data.sources import spk_gopro
from src.data.sources.source import SourceOptions, SourcePlan

SOURCES: Mapping[str, Callable[[SourceOptions], SourcePlan]] = {
    "spk_gopro": spk_gopro.plan,
}
