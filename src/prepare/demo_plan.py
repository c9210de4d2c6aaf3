"""What the demo data set shows: which photographs, which objects, how much motion."""

from dataclasses import dataclass

from src.prepare.demo_photographs import CutOut

# To be raised whenever the same seed gives other bytes than before.
VERSION = 1
SPLITS = ("train", "val")


@dataclass(frozen=True)
class SequencePlan:
    """What one sequence shows.

    Args:
        split: "train" or "val".
        name: its folder.
        background: file name of a photograph.
        pieces: the objects before it, from back to front.
        num_averaged: source frames per blurry frame, odd.
        blur_px: root-mean-square shift of the image centre during one exposure, in RGB pixels.
    """

    split: str
    name: str
    background: str
    pieces: tuple[CutOut, ...]
    num_averaged: int
    blur_px: float


@dataclass(frozen=True)
class DemoPlan:
    """The whole data set.

    Args:
        sequences: what is filmed.
        num_frames: blurry frames per sequence.
        size: (height, width) of the RGB frames; the spike sensor has half of both.
    """

    sequences: tuple[SequencePlan, ...]
    num_frames: int = 12
    size: tuple[int, int] = (192, 256)

    def source(self, seed: int) -> str:
        """Say which data this is; equal texts mean equal bytes."""
        height, width = self.size
        counts = [sum(plan.split == split for plan in self.sequences) for split in SPLITS]
        return (
            f"demo scenes version {VERSION}, seed {seed}, {counts[0]}+{counts[1]} sequences of "
            f"{self.num_frames} frames, {height}x{width}, instantaneous source frames"
        )


def demo_plan() -> DemoPlan:
    """Return the shipped data set: no photograph of a validation sequence occurs in training."""
    eye = CutOut("chelsea.png", (205, 130), (95, 80), edge_px=6)
    fur = CutOut("chelsea.png", (240, 150), (95, 85), edge_px=1.5, num_lobes=5)
    face = CutOut("astronaut.png", (222, 115), (62, 78), edge_px=5)
    helmet = CutOut("astronaut.png", (400, 420), (88, 70), edge_px=1.5)
    coin = CutOut("coins.png", (338, 185), (32, 32), edge_px=2, photo_px=1.0)
    tissue = CutOut("ihc.png", (300, 405), (85, 80), edge_px=1.5, num_lobes=7)
    leaves = CutOut("grass.png", (250, 250), (70, 60), edge_px=4, num_lobes=3)
    stones = CutOut("gravel.png", (260, 260), (80, 70), edge_px=1.5, num_lobes=4)
    cup = CutOut("coffee.png", (300, 125), (115, 100), edge_px=2, photo_px=2.0)
    engine = CutOut("motorcycle_left.png", (365, 240), (95, 80), edge_px=3, num_lobes=5)
    return DemoPlan(
        (
            SequencePlan("train", "seq_000", "astronaut.png", (fur,), 11, 9.0),
            SequencePlan("train", "seq_001", "ihc.png", (face,), 7, 8.0),
            SequencePlan("train", "seq_002", "chelsea.png", (coin, tissue), 11, 11.0),
            SequencePlan("train", "seq_003", "rocket.jpg", (stones, eye), 7, 10.0),
            SequencePlan("train", "seq_004", "camera.png", (helmet,), 11, 8.0),
            SequencePlan("train", "seq_005", "gravel.png", (leaves, face), 7, 7.0),
            SequencePlan("val", "seq_100", "motorcycle_left.png", (cup,), 11, 8.0),
            SequencePlan("val", "seq_101", "coffee.png", (engine,), 7, 9.0),
        )
    )
