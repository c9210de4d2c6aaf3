"""List the weight files that come from elsewhere, and download those that are missing.

    python scripts/fetch_weights.py --list                # what is needed, and whether it is there
    python scripts/fetch_weights.py                       # downloads what the configurations need
    python scripts/fetch_weights.py vrt_gopro             # one file, by its name in the list
    python scripts/fetch_weights.py --to FOLDER           # into a folder, for another machine
    python scripts/fetch_weights.py --from FOLDER         # on that machine: from there, checked

An interrupted download resumes. Files with a recorded hash are checked. See docs/OFFLINE.md.
"""

import argparse
import http.client
import logging
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src.models.downloads import WEIGHT_FILES, WeightFile, download
from src.paths import REPO_ROOT, atomic_write

RELEASE = "https://github.com/JingyunLiang/VRT/releases/download/v0.0/"
OFFICIAL = {
    "vrt_dvd": "005_VRT_videodeblurring_DVD.pth",
    "vrt_gopro": "006_VRT_videodeblurring_GoPro.pth",
    "vrt_reds": "007_VRT_videodeblurring_REDS.pth",
}
USUAL = ["vgg16", "alexnet", "spynet"]
SIZES = {"vgg16": 553_433_881, "vgg19": 574_673_361, "alexnet": 244_408_911}  # bytes
USES = {
    "vgg16": "the perceptual loss (LOSS.VGG_PERCEPTUAL.WEIGHT above 0)",
    "vgg19": "the perceptual loss with LOSS.VGG_PERCEPTUAL.BACKBONE vgg19",
    "alexnet": "LPIPS (VAL.LPIPS); without it the score is null",
    "spynet": "the flow estimator (MODEL.SPYNET download)",
}


class Entry(NamedTuple):
    """A file with the path where the commands look for it, and what a user asks about it."""

    file: WeightFile
    path: Path
    use: str
    licence: str


def entry(name: str) -> Entry:
    """Return what is known about one of `NAMES`."""
    if name in OFFICIAL:
        path = REPO_ROOT / "weights" / OFFICIAL[name]
        use = f"training from official weights (MODEL.PRETRAINED weights/{path.name})"
        return Entry(WeightFile(RELEASE + path.name, ""), path, use, "CC BY-NC 4.0")
    file = WEIGHT_FILES[name]
    is_vrts = file.url.startswith(RELEASE)
    licence = "CC BY-NC 4.0, as the release of VRT" if is_vrts else "BSD-3-Clause (torchvision)"
    return Entry(file, file.cached, USES[name], licence)


NAMES = [*WEIGHT_FILES, *OFFICIAL]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"default: {' '.join(USUAL)}")
    add("--list", action="store_true", help="download nothing")
    add("--to", type=Path, metavar="FOLDER", help="download into a folder")
    add("--from", type=Path, metavar="FOLDER", dest="source", help="copy from a folder")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in NAMES]:
        parser.error(f"no file is named {unknown[0]}; the names are {' '.join(NAMES)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """List or fetch; return 1 if a file is missing or damaged in the end."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.list:
        for name in options.names or NAMES:
            print("\n  ".join(describe(name)))
        return 0
    failed = 0
    for name in options.names or USUAL:
        file, path, *_ = entry(name)
        path = path if options.to is None else options.to / file.name
        try:
            print(f"{name}: {fetch(file, path, options.source)}")
        except (OSError, http.client.HTTPException) as error:
            failed = 1
            print(
                f"{name}: not at {path} ({error}); get {file.url} elsewhere and put it there",
                file=sys.stderr,
            )
    return failed


def fetch(file: WeightFile, path: Path, source: Path | None) -> str:
    """Put a file at its path if it is not there; return what was done.

    Raises:
        OSError, http.client.HTTPException: It cannot be had, or a copy of it is damaged.
    """
    if path.is_file():
        if problem := file.problem(path):
            raise OSError(f"the file there is damaged or another one, {problem}; delete it")
        return f"is at {path}"
    if source is None:
        download(file, path)
    else:
        if problem := file.problem(source / file.name):
            raise OSError(f"{source / file.name} is damaged or another file, {problem}")
        with atomic_write(path) as partial:
            shutil.copyfile(source / file.name, partial)
    note = "" if file.sha256 else "; its hash is not recorded here and was not compared"
    return f"now at {path}{note}"


def describe(name: str) -> list[str]:
    """Return the lines of the list about a file."""
    file, path, use, licence = entry(name)
    state = "missing"
    if path.is_file():
        problem = file.problem(path)
        state = f"damaged or another file, {problem}" if problem else "there"
    digits = "SHA-256" if len(file.sha256) in (0, 64) else "SHA-256 begins with"
    return [
        f"{name}: {state}{'' if name in USUAL else ' (downloaded only if it is named)'}",
        f"for {use}",
        f"place {path}",
        f"from {file.url}",
        f"size {f'{SIZES[name]:,} bytes' if name in SIZES else 'not recorded'}",
        f"{digits} {file.sha256 or 'not recorded'}",
        f"licence {licence}",
    ]


if __name__ == "__main__":
    sys.exit(main())
