"""Recordings of high-speed cameras: every stored kind against values written by hand."""

import numpy as np
import pytest

from src.data.description import read_description
from src.data.errors import BadFileError
from src.prepare.sources.high_speed import open_frames
from src.prepare.sources.mraw import unpack
from tests.source_cases import Drift, prepare, tick_errors, write_config

SIZE = (32, 48)
CIH = """\
#Camera Information Header
Camera Type : FASTCAM SA-Z type 2100K-{sensor}-64GB
Record Rate(fps) : {rate}
Total Frame : {frames}
Save Step : {step}
Image Width : {width}
Image Height : {height}
Color Type : {colours}
Color Bit : {bits}
File Format : MRaw
EffectiveBit Depth : {depth}
EffectiveBit Side : {side}
Comment Text : 16:9, mm
"""
CIHX = """\
<?xml version="1.0" encoding="utf-8"?>
<cih><imageFileInfo><fileFormat>Mraw</fileFormat></imageFileInfo>
<imageDataInfo><resolution><width>{width}</width><height>{height}</height></resolution>
<colorInfo><type>{colours}</type><bit>{bits}</bit></colorInfo>
<effectiveBit><depth>{depth}</depth><side>{side}</side></effectiveBit></imageDataInfo>
<frameInfo><recordedFrame>2000</recordedFrame><totalFrame>{frames}</totalFrame>
<skipFrame>{step}</skipFrame></frameInfo><recordInfo><recordRate>{rate}</recordRate></recordInfo>
<deviceInfo><deviceName>FASTCAM Nova S16 type 1100K-{sensor}-64GB</deviceName></deviceInfo></cih>
"""


def pack(values, bits):
    """The slow twin of `unpack`: two values of 12 bits in three bytes."""
    if bits != 12:
        return values.astype("u1" if bits == 8 else "<u2").tobytes()
    out = bytearray()
    for a, b in values.reshape(-1, 2).tolist():
        out += bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255])
    return bytes(out)


def write_mraw(path, values, packed, cihx=True, more="", **stated):
    """Write linear values [T, H, W] or [T, H, W, 3] and their header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack(values, packed))
    channels = 3 if values.ndim == 4 else 1
    facts = {"frames": len(values), "height": values.shape[1], "width": values.shape[2]}
    facts |= {"bits": packed * channels, "depth": packed, "side": "Lower", "rate": 4000, "step": 1}
    facts |= {"colours": "Color" if channels == 3 else "Mono", "sensor": "M"}
    header = (CIHX if cihx else CIH).format(**facts | stated) + more
    start = b"!!! This file can not be edited. !!!\x00\xffCIHX\x00" if cihx else b""
    path.with_suffix(".cihx" if cihx else ".cih").write_bytes(start + header.encode())


def moving(count, depth, size=SIZE):
    """A texture that moves, in linear light: [T, H, W]."""
    scene = Drift(0, size)
    values = np.stack([scene.at(j)[..., 1] / 255 for j in range(count)])
    return np.rint(values**2.2 * (2**depth - 1)).astype(int)


@pytest.mark.parametrize("cihx", [True, False])
@pytest.mark.parametrize(
    ("bits", "depth", "side"),
    [(8, 8, "Lower"), (12, 12, "Lower"), (16, 12, "Lower"), (16, 12, "Higher"), (16, 16, "Lower")],
)
def test_grey_recordings_by_hand(tmp_path, bits, depth, side, cihx):
    values = moving(3, depth)
    shift = bits - depth if side == "Higher" else 0
    write_mraw(tmp_path / "a.mraw", values << shift, bits, cihx, depth=depth, side=side)
    found = open_frames(tmp_path / "a.mraw")
    assert (len(found), found.size, found.frames_per_second) == (3, SIZE, 4000)
    expected = np.rint(255 * (values / (2**depth - 1)) ** (1 / 2.2))
    for frame, grey in zip(found, expected, strict=True):
        assert frame.dtype == np.uint8
        assert np.array_equal(frame, np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_colours_are_r_g_b(tmp_path, bits):
    values = np.stack([moving(2, bits) // (1 + c) for c in range(3)], axis=-1)
    write_mraw(tmp_path / "a.mraw", values, bits)
    frames = np.stack(list(open_frames(tmp_path / "a.mraw")))
    assert np.array_equal(frames, np.rint(255 * (values / (2**bits - 1)) ** (1 / 2.2)))


@pytest.mark.parametrize("pattern", ["RGGB", "GRBG", "GBRG", "BGGR"])
def test_a_stated_bayer_pattern_gives_its_colours(tmp_path, pattern):
    linear = {"R": 3000, "G": 1500, "B": 400}
    tile = np.array([linear[letter] for letter in pattern]).reshape(1, 2, 2)
    values = np.tile(tile, (1, SIZE[0] // 2, SIZE[1] // 2))
    stated = {"colours": "Bayer", "more": f"Bayer Pattern : {pattern}\n", "cihx": False}
    write_mraw(tmp_path / "a.mraw", values, 12, **stated)
    (frame,) = open_frames(tmp_path / "a.mraw")
    expected = [round(255 * (linear[letter] / 4095) ** (1 / 2.2)) for letter in "RGB"]
    assert np.array_equal(np.unique(frame[2:-2, 2:-2].reshape(-1, 3), axis=0), [expected])


def test_values_of_12_bits_by_hand():
    assert unpack(bytes([0xAB, 0xCD, 0xEF]), 12).tolist() == [0xABC, 0xDEF]


REFUSED = {
    "no header": ({}, lambda d: (d / "a.cihx").unlink(), "one header a.cihx or a.cih beside it"),
    "two headers": ({}, lambda d: (d / "a.cih").touch(), "is needed, not a.cih, a.cihx"),
    "cut": (
        *({}, lambda d: (d / "a.mraw").write_bytes(bytes(100))),
        "a.mraw: has 100 bytes; 2 frames of 32x48 with 16 bits per pixel, as a.cihx",
    ),
    "a pointer": (
        *({}, lambda d: (d / "a.mraw").write_bytes(b"version https://git-lfs.github.com")),
        "a.mraw: is a pointer of Git LFS",
    ),
    "header of another program": (
        *({}, lambda d: (d / "a.cihx").write_text("<html>")),
        "a.cihx: is no header of a camera",
    ),
    "header in parts": (
        *({"cihx": False}, lambda d: (d / "a.cih").write_text("Image Width : 4\n")),
        "a.cih: does not state Image Height, Total Frame",
    ),
    "a number that is none": ({"rate": "fast"}, None, "could not convert .*fast"),
    "a rate that is none": ({"rate": "nan"}, None, "nan per second"),
    "a width without end": ({"width": "inf"}, None, "cannot convert float infinity"),
    "no frames": ({"frames": 0}, None, "0 frames of 32x48"),
    "bits": ({"bits": 10}, None, "Color Bit 10"),
    "colours of the filters": (
        *({"colours": "Raw", "sensor": "C"}, None),
        "no pattern of the colour filters; add the line 'Bayer Pattern : RGGB'",
    ),
    "unknown colours": ({"colours": "YUV"}, None, "Color Type YUV; Mono, Raw, Bayer and Color"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_f54_what_cannot_be_read_is_named(tmp_path, name):
    stated, change, message = REFUSED[name]
    write_mraw(tmp_path / "a.mraw", moving(2, 16), 16, **stated)
    if change is not None:
        change(tmp_path)
    with pytest.raises(BadFileError, match=message):
        open_frames(tmp_path / "a.mraw")


def test_values_outside_the_stated_bits_are_named(tmp_path):
    write_mraw(tmp_path / "a.mraw", moving(2, 16), 16, depth=12)
    with pytest.raises(BadFileError, match=r"frame 0 has the value \d+, a.cihx states 12 bits"):
        list(open_frames(tmp_path / "a.mraw"))


def test_from_recordings_to_training_data(tmp_path, capsys):
    """The rate comes from the headers; every second frame was saved, so it is half of theirs."""
    write_mraw(tmp_path / "in/train/a/shot.mraw", moving(40, 12), 12, step=2)
    write_mraw(tmp_path / "in/val/b.mraw", moving(40, 12), 16, depth=12, step=2, cihx=False)
    config = write_config(tmp_path, tmp_path / "ours")
    options = ["--frames_averaged", 7, "--transfer", "linear", "--blur_kind", "blur_gamma"]
    options += ["--interpolator", "linear"]
    assert prepare(config, "folders", tmp_path / "in", *options) == 0, capsys.readouterr()
    assert "every 2th frame of 4000 per second was saved: 2000" in capsys.readouterr().out
    assert read_description(tmp_path / "ours").ticks_per_second == 16000
    errors = tick_errors(tmp_path / "ours/train/a", width=15)
    assert max(map(abs, errors.values())) <= 0.5
    write_mraw(tmp_path / "in/val/b.mraw", moving(40, 12), 12, rate=500, cihx=False)
    assert prepare(write_config(tmp_path, tmp_path / "other"), "folders", tmp_path / "in", *options)
    assert "recorded at [500.0, 2000.0] frames per second" in capsys.readouterr().err
