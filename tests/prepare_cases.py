"""Running scripts/prepare_data.py on miniature data roots."""

import os
from pathlib import Path

from scripts import prepare_data
from tests.data_cases import copy_root, write_miniature

CONFIG = """\
# what it is
DATA:
  ROOT: {root}
  CROP_SIZE: 32
  USE_PRECOMPUTED_VOXELS: true
  CLIP_LEN: 3
  NORM:
    MEAN: 0.0   # of log1p(count)
    STD: 1.0
TRAIN:
  NUM_WORKERS: 0
  GRADIENT_ACCUMULATION_STEPS: 2
LOG:
  SAVE_DIR: {out}
"""


def run(config, *arguments):
    return prepare_data.main(["--config", str(config), "--workers", "1", *arguments])


def state_of(*folders):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rewrite(path, old, new):
    path.write_text(path.read_text().replace(old, new, 1))


def touch_later(path):
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


def flip_bits(path):
    path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))
    touch_later(path)


def silence(path):
    path.write_bytes(bytes(path.stat().st_size))


def write_config(root, path):
    """Write a configuration for a data root; its outputs lie beside it."""
    path = Path(path)
    path.write_text(CONFIG.format(root=root, out=path.parent / "out"))
    return path


def write_prepared(folder, **options):
    """Write and prepare a miniature in `folder`; return the path of its configuration."""
    options = {"sequences": 2, "frames": 4, **options}
    config = write_config(write_miniature(folder / "mini", **options), folder / "mini.yaml")
    assert run(config) == 0
    return config


def copy_prepared(config, target):
    """Copy what `write_prepared` made; return the path of the copied configuration."""
    folder = copy_root(config.parent, target)
    copied = folder / config.name
    copied.write_text(copied.read_text().replace(str(config.parent), str(folder)))
    return copied
