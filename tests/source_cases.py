"""Data sets as they are downloaded, in miniature: names, numbers, offsets and folders as published.

The scene is a smooth texture that drifts by parts of a pixel per frame, rendered at any time, also
before a clip begins: released blurry frames of late parts need what the source does not have.
"""

import dataclasses
import io
from fractions import Fraction

import av
import cv2
import numpy as np
import yaml

from scripts import prepare_data
from src.data.exposures import frame_index, read_exposures
from src.data.frames import list_frames, read_image, write_png
from src.data.simulation.blur import synthesize_blur
from src.data.spikes.matching import best_tfp_centre, grey_at_spike_size
from src.data.spikes.spike_dat import SpikeFile, read_sidecar

SIZE = (96, 128)
SPEED_PX = (0.9, 1.7)  # per source frame, down and to the right

CONFIG = """\
DATA:
  ROOT: {root}
  CROP_SIZE: 32
  CLIP_LEN: 2
  K: 8
  NORM: {{MEAN: 0.0, STD: 1.0}}
LOG:
  SAVE_DIR: {out}
"""


class Drift:
    """A texture that drifts; `at(j)` is what source frame j shows: uint8 [H, W, 3]."""

    def __init__(self, seed, size=SIZE, speed_px=SPEED_PX):
        rng = np.random.default_rng(seed)
        noise = rng.normal(size=(size[0] + 160, size[1] + 240, 3)).astype(np.float32)
        texture = cv2.GaussianBlur(noise, (0, 0), 2.5)
        self.texture = np.clip(0.5 + 0.22 * texture / texture.std(), 0.05, 0.95)
        self.size, self.speed_px = size, speed_px

    def at(self, j):
        down, right = 20 + self.speed_px[0] * j, 20 + self.speed_px[1] * j
        shift = np.array([[1, 0, right], [0, 1, down]], np.float32)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        image = cv2.warpAffine(self.texture, shift, self.size[::-1], flags=flags)
        return np.rint(image * 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class GoproClip:
    """A clip of the miniature: `GOPRxxxx_nn_zz` and the first numbers of its files."""

    split: str
    name: str
    num_frames: int
    first_source: int = 1
    first_pair: int = 1
    pairs: int | None = None  # None: all whose exposure ends within the source

    @property
    def n(self):
        return int(self.name.split("_")[1])

    @property
    def zz(self):
        return int(self.name.split("_")[2])

    @property
    def num_pairs(self):
        whole = (self.num_frames + self.zz) // self.n
        return whole if self.pairs is None else self.pairs


# Every kind: n = 7, 11, 13 and zz = 0, 1, 3, 5. The numbers of the first clip are published.
GOPRO_CLIPS = (
    GoproClip("train", "GOPR0372_07_00", 24, first_source=323, first_pair=47),
    GoproClip("train", "GOPR0372_07_01", 24),
    GoproClip("train", "GOPR0374_11_03", 36, first_source=12),
    GoproClip("train", "GOPR0378_13_00", 42, first_source=200, first_pair=3),
    GoproClip("test", "GOPR0384_11_05", 36, first_pair=5),
)


SMALL_GOPRO = (
    GoproClip("train", "GOPR0374_11_03", 36, first_source=12),
    GoproClip("test", "GOPR0385_07_00", 16),
)


def write_gopro(folder, clips=GOPRO_CLIPS, pairs=True, size=SIZE):
    """Write GOPRO_Large_all and, if wanted, GOPRO_Large beside it; return the folder of both."""
    for seed, clip in enumerate(clips):
        scene = Drift(seed, size)
        for j in range(clip.num_frames):
            path = folder / "GOPRO_Large_all" / clip.split / clip.name
            write_png(path / f"{clip.first_source + j:06d}.png", scene.at(j))
        if pairs:
            write_pairs(folder / "GOPRO_Large" / clip.split / clip.name, clip, scene)
    return folder


def write_pairs(folder, clip, scene):
    for kind in ("blur", "blur_gamma", "sharp"):
        (folder / kind).mkdir(parents=True)
    for k in range(clip.num_pairs):
        first = k * clip.n - clip.zz
        frames = np.stack([scene.at(j) for j in range(first, first + clip.n)])
        name = f"{clip.first_pair + k:06d}.png"
        write_released(folder / "blur" / name, synthesize_blur(frames))
        write_released(folder / "blur_gamma" / name, synthesize_blur(frames, 2.2))
        write_released(folder / "sharp" / name, frames[(clip.n - 1) // 2])


def write_released(path, image):
    """A PNG whose bytes are not those that we would write."""
    cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])


def write_x4k(folder, clips=None, size=SIZE, as_video=False):
    """Write X-TRAIN and X-TEST; `clips`: relative folder -> number of frames."""
    clips = clips or {
        "train/002/occ008.320": 65,
        "train/012/occ010.101": 65,
        "test/Type1/TEST01_003_f0433": 33,
    }
    for seed, (place, count) in enumerate(clips.items()):
        scene = Drift(100 + seed, size, speed_px=(0.3, 0.9))
        frames = [scene.at(j) for j in range(count)]
        if as_video:
            write_video(folder / f"{place}.mp4", frames)
            continue
        for j, frame in enumerate(frames):
            write_png(folder / place / f"{j:04d}.png", frame)
    return folder


def write_video(path, frames, pix_fmt="yuv420p", times=None, pipe=False, codec=None, **options):
    """Encode frames: H.264, or VP9 for .webm; `times` in steps of 1/90000 s, `options` of x264."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = codec or ("libvpx-vp9" if path.suffix == ".webm" else "libx264")
    clock = Fraction(1, 90000)
    target = io.BytesIO() if pipe else str(path)
    form = {".webm": "webm", ".mkv": "matroska"}.get(path.suffix, path.suffix[1:])
    with av.open(target, "w", format=form, options={"live": "1"} if pipe else {}) as container:
        stream = container.add_stream(codec, rate=25, options={"threads": "1", **options})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = pix_fmt, clock
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.time_base = clock
            picture.pts = 3600 * number if times is None else times[number]
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    if pipe:
        path.write_bytes(target.getvalue())


def add_silence(container, seconds):
    sound = container.add_stream("pcm_s16le", rate=8000)
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000 * seconds), np.int16), "s16", "mono")
    frame.sample_rate = 8000
    container.mux(sound.encode(frame))


def copy_video(source, target, start=0.0, rotation=0, sound_s=0):
    """Copy the pictures of a video without decoding, as ffmpeg -ss START -c copy does."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        pictures = old.streams.video[0]
        stream = new.add_stream_from_template(pictures)
        if rotation:
            stream.set_display_rotation(rotation)
        if sound_s:
            add_silence(new, sound_s)
        for packet in old.demux(pictures):
            if packet.dts is not None:
                packet.stream = stream
                packet.pts -= round(start / packet.time_base)
                packet.dts -= round(start / packet.time_base)
                new.mux(packet)


def write_config(folder, root):
    """Write a configuration with its outputs in `folder`; return its path."""
    path = folder / f"{root.name}.yaml"
    path.write_text(CONFIG.format(root=root, out=folder / "out"))
    return path


def prepare(config, source, folder, *arguments, workers=1):
    """Run the script on a downloaded data set; return its exit status."""
    options = ["--config", str(config), "--workers", str(workers)]
    return prepare_data.main(
        [*options, "--source", source, "--input", str(folder), *map(str, arguments)]
    )


def norm_of(config):
    return yaml.safe_load(config.read_text())["DATA"]["NORM"]


def read_stream(sequence):
    """All spikes of a made sequence, and its ticks per second."""
    (path,) = list_frames(sequence / "spike", [".dat"]).values()
    sidecar = read_sidecar(path)
    file = SpikeFile(path, sidecar.geometry)
    return file.read(0, file.num_ticks), sidecar.ticks_per_second


def tick_errors(sequence, width=17):
    """Return best TFP centre minus stated tick of every sharp frame of a sequence, by number."""
    spikes, rate = read_stream(sequence)
    exposures = read_exposures(sequence / "exposures.csv", rate)
    errors = {}
    for name, path in list_frames(sequence / "sharp", [".png"]).items():
        exposure = exposures[frame_index(name)]
        first = max(round(exposure.t0 * rate) - width, 0)
        around = spikes[first : round(exposure.t1 * rate) + width]
        grey = grey_at_spike_size(read_image(path), spikes.shape[1:])
        match = best_tfp_centre(around, grey, width=width)
        assert match.is_decisive or width < 5  # so few ticks hold little of a picture
        errors[frame_index(name)] = match.centre + first - exposure.t_sharp * rate
    return errors


def bytes_of(root):
    """Return the content of all that a source writes below a root, by relative name."""
    kinds = ("dataset.yaml", "source.json", "exposures.csv", "spike.yaml")
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and (path.name in kinds or path.suffix in (".png", ".dat"))
    }
