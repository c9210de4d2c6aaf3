"""Recordings of Photron's high-speed cameras: `NAME.mraw` with its header `NAME.cih` or `.cihx`.

The header is text (`Key : Value`) or XML; it states size, frames, rate, bits and colours. Pixels of
8 and 16 bits are stored as they are (little endian), those of 12 bits in pairs:

    p0 = b0 << 4 | b1 >> 4,   p1 = (b1 & 15) << 8 | b2

Values are linear in light. They become 8 bit pictures with the camera curve that `--transfer
linear` and `blur_gamma` undo: 255 (v / max)^(1 / 2.2). Grey is repeated in three channels; colours
are read as R, G, B of every pixel, or made from a Bayer pattern that the header states.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

from src.data.errors import BadFileError, other_kind

MRAW_EXTS = (".mraw",)
HEADER_EXTS = (".cihx", ".cih")
GAMMA = 2.2
# What is read of a header: key of `.cih`, path in `.cihx`, and the default, None: it is needed.
FIELDS = {
    "width": ("Image Width", "imageDataInfo/resolution/width", None),
    "height": ("Image Height", "imageDataInfo/resolution/height", None),
    "frames": ("Total Frame", "frameInfo/totalFrame", None),
    "bits": ("Color Bit", "imageDataInfo/colorInfo/bit", None),
    "colours": ("Color Type", "imageDataInfo/colorInfo/type", None),
    "depth": ("EffectiveBit Depth", "imageDataInfo/effectiveBit/depth", None),
    "side": ("EffectiveBit Side", "imageDataInfo/effectiveBit/side", "Lower"),
    "rate": ("Record Rate(fps)", "recordInfo/recordRate", None),
    "step": ("Save Step", "frameInfo/skipFrame", "1"),
    "format": ("File Format", "imageFileInfo/fileFormat", "Mraw"),
    "device": ("Camera Type", "deviceInfo/deviceName", ""),
    "pattern": ("Bayer Pattern", "imageDataInfo/colorInfo/bayerPattern", ""),
}
NUMBERS = ("width", "height", "frames", "bits", "depth", "rate", "step")
# OpenCV names a pattern by its second row and column.
BAYER = {
    "RGGB": cv2.COLOR_BayerBG2RGB,
    "GRBG": cv2.COLOR_BayerGB2RGB,
    "GBRG": cv2.COLOR_BayerGR2RGB,
    "BGGR": cv2.COLOR_BayerRG2RGB,
}


@dataclass(frozen=True)
class MrawHeader:
    """What the header of a recording states, checked."""

    path: Path
    width: int
    height: int
    num_frames: int
    bits: int  # 8, 12 or 16 that a value takes in the file
    depth: int  # bits of it that are used
    is_high: bool  # whether they are the upper ones
    channels: int  # 1, or 3 of a colour recording
    pattern: str | None  # of the colour filters of a raw recording
    frames_per_second: float
    notes: tuple[str, ...]

    @property
    def frame_bytes(self) -> int:
        """Size of a frame in the file."""
        return self.width * self.height * self.channels * self.bits // 8


def find_mraw(path: Path) -> tuple[MrawHeader, Path]:
    """Return the header and the pixels of a recording, of which `path` holds the pixels."""
    headers = [
        entry
        for entry in sorted(path.parent.iterdir())
        if entry.stem == path.stem and entry.suffix.lower() in HEADER_EXTS
    ]
    if len(headers) != 1:
        found = ", ".join(entry.name for entry in headers) or "none"
        reason = f"one header {path.stem}.cihx or {path.stem}.cih beside it is needed, not {found}"
        raise BadFileError(path, reason)
    header = _checked(headers[0], _read_fields(headers[0]))
    size, needed = path.stat().st_size, header.num_frames * header.frame_bytes
    if size != needed:
        kind = other_kind(path)
        found = f"has {size} bytes" if kind is None else f"is {kind}"
        raise BadFileError(
            path,
            f"{found}; {header.num_frames} frames of {header.height}x{header.width} with "
            f"{header.bits * header.channels} bits per pixel, as {headers[0].name} states, are "
            f"{needed}: copy both files again",
        )
    return header, path


def read_mraw(path: Path, header: MrawHeader) -> Iterator[np.ndarray]:
    """Yield the frames of a recording: uint8 RGB [H, W, 3]."""
    highest = 2**header.depth - 1
    curve = np.rint(255 * (np.arange(highest + 1) / highest) ** (1 / GAMMA)).astype(np.uint8)
    shape = (header.height, header.width) + (3,) * (header.channels == 3)
    with path.open("rb") as handle:
        for number in range(header.num_frames):
            values = unpack(handle.read(header.frame_bytes), header.bits).reshape(shape)
            values = values >> (header.bits - header.depth) if header.is_high else values
            if values.max() > highest:
                reason = (
                    f"frame {number} has the value {values.max()}, {header.path.name} states "
                    f"{header.depth} bits in the {'upper' if header.is_high else 'lower'} ones; "
                    "correct EffectiveBit there"
                )
                raise BadFileError(path, reason)
            if header.pattern is not None:  # colours are mixed while they are linear
                values = cv2.cvtColor(values, BAYER[header.pattern])
            image = curve[values]
            yield image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)


def unpack(data: bytes, bits: int) -> np.ndarray:
    """Return the values of packed pixels: uint8 or uint16."""
    if bits != 12:
        return np.frombuffer(data, np.uint8 if bits == 8 else "<u2")
    first, middle, last = np.frombuffer(data, np.uint8).reshape(-1, 3).T.astype(np.uint16)
    return np.stack([first << 4 | middle >> 4, (middle & 15) << 8 | last], axis=1).reshape(-1)


# ---------------------------------------------------------------- headers


def _read_fields(path: Path) -> Mapping[str, str]:
    """Return the texts of a header by the names of `FIELDS`, defaults included."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadFileError(path, f"cannot be read: {error.strerror}") from error
    found: dict[str, str | None] = {}
    if path.suffix.lower() == ".cihx":
        # Only the element: before it lie bytes that are no XML, and nothing can declare entities.
        start, stop = data.find(b"<cih>"), data.rfind(b"</cih>")
        try:
            tree = ElementTree.fromstring(data[start : stop + 6].decode("utf-8", "replace"))  # noqa: S314
        except ElementTree.ParseError as error:
            raise BadFileError(path, f"is no header of a camera: {error}; copy it again") from error
        found = {name: tree.findtext(place) for name, (_, place, _) in FIELDS.items()}
    else:
        lines = re.findall(r"^([^:\r\n]+?) *: *([^\r\n]*)", data.decode("latin-1"), re.MULTILINE)
        texts = dict(reversed(lines))  # the first of a key
        found = {name: texts.get(key) for name, (key, _, _) in FIELDS.items()}
    values = {
        name: (found[name] or "").strip() or default for name, (_, _, default) in FIELDS.items()
    }
    missing = [FIELDS[name][0] for name, value in values.items() if value is None]
    if missing:
        kind = other_kind(path)
        reason = f"does not state {', '.join(missing)}" if kind is None else f"is {kind}"
        raise BadFileError(path, f"{reason}; copy it again from the camera")
    return values


def _checked(path: Path, texts: Mapping[str, str]) -> MrawHeader:
    """Return what a header states, checked."""
    try:
        given = {name: float(texts[name]) for name in NUMBERS}
        width, height, frames, bits, depth, step = (
            int(given[name]) for name in ("width", "height", "frames", "bits", "depth", "step")
        )
    except (OverflowError, ValueError) as error:
        raise BadFileError(path, f"{error}; copy it again from the camera") from error
    kind, side, pattern = texts["colours"].lower(), texts["side"].lower(), texts["pattern"].upper()
    channels = 3 if kind in ("color", "colour", "rgb") else 1
    # A recording that is raw comes from a grey sensor, or shows the colour filters of its pixels.
    is_filtered = kind == "bayer" or (kind == "raw" and "-C" in texts["device"])
    bits //= channels
    problems = []
    if texts["format"].lower() != "mraw":
        problems.append(f"File Format {texts['format']} instead of MRaw")
    if min(width, height, frames) <= 0 or not 0 < given["rate"] < math.inf:
        problems.append(f"{frames} frames of {height}x{width} at {given['rate']:g} per second")
    if kind not in ("mono", "raw", "bayer", "color", "colour", "rgb"):
        problems.append(f"Color Type {texts['colours']}; Mono, Raw, Bayer and Color are known")
    if bits not in (8, 12, 16) or not 1 <= depth <= bits or side not in ("lower", "higher"):
        problems.append(f"Color Bit {texts['bits']}, EffectiveBit {depth} {side}")
    if bits == 12 and width * height * channels % 2:
        problems.append(f"an odd number of pixels, {height}x{width}, in 12 bits")
    if is_filtered and pattern not in BAYER:
        problems.append(
            "no pattern of the colour filters; add the line 'Bayer Pattern : RGGB' (or GRBG, GBRG, "
            "BGGR) to a .cih header, or save the recording in colour"
        )
    if problems:
        raise BadFileError(path, f"cannot be used: {'; '.join(problems)}")
    rate = given["rate"] / max(step, 1)
    colours = "colour (R, G, B)" if channels == 3 else pattern if is_filtered else "grey"
    notes = [f"{colours}, {depth} bits of linear light, encoded with gamma {GAMMA}"]
    if step > 1:
        notes.append(
            f"every {step}th frame of {given['rate']:g} per second was saved: {rate:g} per second"
        )
    return MrawHeader(
        *(path, width, height, frames, bits, depth, side == "higher", channels),
        pattern if is_filtered else None,
        rate,
        tuple(notes),
    )
