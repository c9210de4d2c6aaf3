"""What a file is by its leading bytes, whatever its ending says.

A reader that fails asks `other_kind`, so that a pointer of Git LFS, a saved web page or the file of
an event camera is called what it is. Packed spikes have no header, so signatures are long enough
that bits of a recording do not show one by chance.
"""

from pathlib import Path

from src.data.errors import BadFileError

LEADING_BYTES = 2048
GET_IT_AGAIN = "download the file itself"
NO_SPIKES = "these are events of an event camera, which are no spikes"
# First bytes, what they say, and the endings under which that is no surprise.
SIGNATURES = (
    (b"version https://git-lfs", "a pointer of Git LFS; run: git lfs pull", ()),
    (b"#!AER-DAT", f"an AEDAT recording; {NO_SPIKES}", (".aedat", ".aedat4")),
    (b"#ROSBAG", "a ROS bag; export the spikes from it first", (".bag",)),
    (b"\x89PNG\r\n\x1a\n", "a PNG image", (".png",)),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file; name it .h5", (".h5", ".hdf5")),
    (b"PK\x03\x04", "a ZIP archive; unpack it, or name it .npz if it is one", (".npz",)),
    (b"\x93NUMPY", "a NumPy array; name it .npy", (".npy",)),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file; save the array as .npy or .h5", (".mat",)),
    (b"\x1f\x8b\x08", "packed with gzip; unpack it first", (".gz", ".tgz")),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first", (".7z",)),
    (b"Rar!\x1a\x07", "a RAR archive; unpack it first", (".rar",)),
    (b"\xfd7zXZ\x00", "packed with xz; unpack it first", (".xz",)),
    (b"\x28\xb5\x2f\xfd", "packed with zstd; unpack it first", (".zst",)),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video", (".mkv", ".webm")),
    (b"%PDF-", "a PDF document", (".pdf",)),
)
WEB_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")


def kind_of(start: bytes, num_bytes: int) -> tuple[str, tuple[str, ...]] | None:
    """Return what leading bytes of a file of some size show, and its endings; None: nothing known.

    `start` are the first 2048 bytes, or all of a shorter file.
    """
    for signature, name, endings in SIGNATURES:
        if start.startswith(signature):
            return name, endings
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:9].lower()
    if text.startswith(WEB_PAGES):
        name = "an XML text" if text.startswith(b"<?xml") else "a web page"
        return f"{name} in place of the data; {GET_IT_AGAIN}", (".html", ".xml", ".cihx")
    if start.startswith((b"% ", b"%\n")) and b"\n% " in start:
        is_raw = b"evt " in start or b"EVT" in start
        what = "a Prophesee .raw recording" if is_raw else "a Prophesee .dat recording"
        return f"{what}; {NO_SPIKES}", ()
    if start.startswith(b"\xff\xd8\xff") and start[3:4] >= b"\xc0":
        return "a JPEG image", (".jpg", ".jpeg")
    if start.startswith(b"BM") and int.from_bytes(start[2:6], "little") == num_bytes:
        return "a BMP image", (".bmp",)
    if start.startswith(b"RIFF") and start[8:12] in (b"AVI ", b"WEBP", b"WAVE"):
        return "an AVI, WebP or WAV file", (".avi", ".webp", ".wav")
    if start[4:8] == b"ftyp":
        return "an MP4 or MOV video", (".mp4", ".mov", ".m4v")
    return None


def other_kind(path: str | Path) -> str | None:
    """Return what a file is where that is something else than its ending says, else None."""
    path = Path(path)
    try:
        with path.open("rb") as handle:
            start, num_bytes = handle.read(LEADING_BYTES), path.stat().st_size
    except OSError:
        return None  # reading it names the reason
    found = kind_of(start, num_bytes)
    return None if found is None or path.suffix.lower() in found[1] else found[0]


def refuse_other_kind(path: str | Path) -> None:
    """Raise a BadFileError for a file that is something else than its ending says."""
    found = other_kind(path)
    if found is not None:
        raise BadFileError(path, f"is {found}")
