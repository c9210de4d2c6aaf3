"""Inspect a file that is said to hold spikes, whatever it is."""

from dataclasses import replace
from pathlib import Path

from src.data.errors import BadFileError
from src.data.spikes.arrays import ARRAY_SUFFIXES
from src.data.spikes.spike_dat import read_sidecar
from src.prepare.inspection.array_samples import sample_array
from src.prepare.inspection.arrays import inspect_dense
from src.prepare.inspection.findings import Findings, Question
from src.prepare.inspection.lists import inspect_list
from src.prepare.inspection.packed import inspect_packed

# First bytes of files that are no bare bits, whatever their ending says.
SIGNATURES = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"BM": "a BMP image",
    b"RIFF": "an AVI or WebP file",
    b"\x89HDF": "an HDF5 file; name it .h5",
    b"PK\x03\x04": "a ZIP archive; name it .npz if it is one",
    b"\x93NUMPY": "a NumPy array; name it .npy",
    b"\x1f\x8b": "packed with gzip; unpack it first",
}
PACKED_ENDINGS = (".dat", ".bin", ".raw")


def inspect_file(question: Question) -> Findings:
    """Find out what a file is.

    What a YAML file beside packed spikes says is tested like what the user says.

    Raises:
        BadFileError: a file that is missing, empty, or of a kind that holds no spikes.
        ValueError: a given size that packed spikes cannot have.
    """
    path = question.path
    if not path.is_file():
        raise BadFileError(path, "is a folder" if path.is_dir() else "no such file")
    if path.suffix.lower() in ARRAY_SUFFIXES:
        sample = sample_array(path, question.key)
        if len(sample.shape) == 3 and sample.values.dtype.kind in "buif":
            return inspect_dense(sample, question)
        if len(sample.shape) == 2 and sample.shape[1] in (3, 4):
            return inspect_list(sample, question)
        raise BadFileError(
            path,
            f"array {sample.key or ''} has shape {sample.shape} of {sample.values.dtype}; three "
            "axes (time, rows, columns) or rows (t, y, x) of numbers are needed",
        )
    _refuse_known_kinds(path)
    beside = read_sidecar(path)
    if beside is not None and question.size is None:
        question = replace(
            question,
            height=beside.height,
            width=beside.width,
            bit_order=question.bit_order or beside.bit_order,
            flip_rows=beside.flip_rows if question.flip_rows is None else question.flip_rows,
        )
    findings = inspect_packed(question)
    if beside is not None:
        said = (
            f"a YAML file beside it says {beside.height}x{beside.width}, bit_order "
            f"{beside.bit_order}, flip_rows {beside.flip_rows}"
        )
        findings = replace(findings, measured=(said, *findings.measured))
    if path.suffix.lower() not in PACKED_ENDINGS:
        note = f"the ending {path.suffix or '(none)'} is not known; looked at as packed bits"
        findings = replace(findings, warnings=(note, *findings.warnings))
    return findings


def _refuse_known_kinds(path: Path) -> None:
    with path.open("rb") as handle:
        start = handle.read(12)
    for signature, name in SIGNATURES.items():
        if start.startswith(signature):
            raise BadFileError(path, f"is {name}, not packed spikes")
    if start[4:8] == b"ftyp":
        raise BadFileError(path, "is an MP4 video, not packed spikes")
