"""The downloaded data sets that `scripts/prepare_data.py --source` understands."""

from collections.abc import Callable, Mapping

from src.data.sources import folders, gopro, spk_gopro, x4k1000fps
from src.data.sources.source import SourceOptions, SourcePlan

SOURCES: Mapping[str, Callable[[SourceOptions], SourcePlan]] = {
    "folders": folders.plan,
    "gopro": gopro.plan,
    "spk_gopro": spk_gopro.plan,
    "x4k1000fps": x4k1000fps.plan,
}
