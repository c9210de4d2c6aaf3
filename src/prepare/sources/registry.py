"""The downloaded data sets that `scripts/prepare_data.py --source` understands."""

from collections.abc import Callable, Mapping

from src.prepare.sources import gopro, own, spk_gopro, x4k1000fps
from src.prepare.sources.source import SourceOptions, SourcePlan

SOURCES: Mapping[str, Callable[[SourceOptions], SourcePlan]] = {
    "folders": own.plan,
    "gopro": gopro.plan,
    "spk_gopro": spk_gopro.plan,
    "x4k1000fps": x4k1000fps.plan,
}
