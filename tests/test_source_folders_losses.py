"""Own recordings that lost something on the way: images, rows of the table, the right times."""

import re
import shutil

import numpy as np
import pytest

from src.data.errors import BadFileError, DataSetError
from src.data.exposures import Exposure
from src.data.spikes.spike_dat import SpikeGeometry, write_spikes
from src.prepare.sources.own import plan
from src.prepare.sources.plan import SourceOptions
from src.prepare.sources.recorded import name_gaps
from src.prepare.sources.run import run_plan
from tests.source_cases import prepare, write_config
from tests.spike_cases import dense_to_events
from tests.spike_source_cases import SPIKE_SIZE, write_recorded, write_stated


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "train" / "a"
    write_spikes(folder / "spike.dat", write_recorded(folder), SpikeGeometry(*SPIKE_SIZE))
    write_stated(folder / "spike.yaml")
    return tmp_path


@pytest.fixture
def folder(root):
    return root / "train" / "a"


def plan_and_write(root, name="good"):
    (job,) = plan(SourceOptions(root)).sequences
    return job.write(root / name)


@pytest.mark.parametrize("kind", ["blur", "sharp"])
def test_f33_every_copied_image_is_looked_at(root, folder, kind):
    path = folder / kind / "img_001.png"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(
        DataSetError, match=rf"{kind}/img_001\.png: empty, or its end is missing"
    ) as told:
        run_plan(plan(SourceOptions(root)), root / "out", workers=1)
    assert str(told.value).count("train/a: ") == 1


def test_f34_gaps_are_named(root, folder):
    for kind in ("blur", "sharp"):
        (folder / kind / "img_002.png").unlink()
    notes = str(plan_and_write(root))
    assert "1 line(s) of exposures.csv have no frames and are not used: 2;" in notes
    assert "missing in the middle" not in notes  # not the same twice
    table = folder / "exposures.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line for line in lines if not line.startswith("2,")))
    assert "1 frame(s) missing in the middle: 2;" in str(plan_and_write(root, "again"))


@pytest.mark.parametrize("wrong", [1, 5])
def test_files_that_are_not_as_long_as_their_exposure_are_named(tmp_path, wrong):
    folder = tmp_path / "train" / "b"
    spikes = write_recorded(folder)
    for k in range(5):
        length = 30 if k < wrong else 40
        path = folder / "spike" / f"img_{k:03d}.dat"
        write_spikes(path, spikes[56 * k + 8 :][:length], SpikeGeometry(*SPIKE_SIZE))
    write_stated(folder / "spike" / "spike.yaml")
    reason = "differ in length: .* is 40 ticks, the file has 30"
    if wrong == 5:
        with pytest.raises(DataSetError, match=reason):
            plan_and_write(tmp_path)
    else:
        (told,) = [line for line in plan_and_write(tmp_path) if "differ in length" in line]
        assert re.search(reason, told)
        assert "img_000" in told


def test_numbers_that_are_times_have_noname_gaps():
    exposure = Exposure(0.0, 1.0)
    assert name_gaps([1000, 2000, 3000], dict.fromkeys([1000, 2000, 3000], exposure)) == []
    assert "2 frame(s) missing in the middle: 3, 4;" in name_gaps([1, 2, 5], {})[0]


def test_one_exposure_late_is_refused(root, folder):
    """The table is 56 ticks late; what the spikes of these windows show is another frame."""
    table = folder / "exposures.csv"
    header, *rows = table.read_text().splitlines()
    late = [[int(value) for value in row.split(",")] for row in rows[:-1]]
    rows = [",".join(map(str, (k, a + 56, b + 56, c + 56))) for k, a, b, c in late]
    table.write_text("\n".join([header, *rows]))
    for kind in ("blur", "sharp"):
        (folder / kind / "img_004.png").unlink()
    with pytest.raises(DataSetError, match="spikes are 1 exposure early: in 3 of 3"):
        plan_and_write(root)


def test_swapped_folders_are_asked_for_where_times_do_not_fit(root, folder):
    for name, new in (("blur", "other"), ("sharp", "blur"), ("other", "sharp")):
        (folder / name).rename(folder / new)
    table = folder / "exposures.csv"
    header, *rows = table.read_text().splitlines()
    cells = [[int(cell) for cell in row.split(",")] for row in rows]
    table.write_text("\n".join([header, *(f"{k},{a},{b},{c - 12}" for k, a, b, c in cells)]))
    with pytest.raises(DataSetError, match="are the folders blur and sharp swapped"):
        plan_and_write(root)


def test_times_in_another_unit_are_named_and_not_the_disk(root, folder):
    """Ticks under the header of seconds: hours of video, of which the spikes hold an instant."""
    table = folder / "exposures.csv"
    header, *rows = table.read_text().replace("[ticks]", "[s]").splitlines()
    cells = [row.split(",") for row in rows]
    late = [",".join([number, *(f"{time}00000" for time in times)]) for number, *times in cells]
    table.write_text("\n".join([header, *late]))
    (job,) = plan(SourceOptions(root)).sequences
    files = [path for kind in ("blur", "sharp", ".") for path in (folder / kind).glob("*.[pd]*")]
    assert job.out_bytes == sum(path.stat().st_size for path in files)
    with pytest.raises(BadFileError, match=r"no exposure .* Is the tick rate right, and the unit"):
        plan_and_write(root)


@pytest.mark.parametrize("unit", ["microseconds", "table", "since the camera was switched on"])
def test_lists_of_events_in_another_unit_are_refused_before_they_are_written(root, folder, unit):
    events = dense_to_events(write_recorded(folder))
    (folder / "spike.dat").unlink()
    if unit == "microseconds":
        np.save(folder / "spike.npy", events * (500, 1, 1))
        message = r"all times are multiples of 500, so they are no ticks; divide them by 500"
    elif unit != "table":
        np.save(folder / "spike.npy", events + (100_000, 0, 0))
        message = r"its spikes begin at tick 100000, the exposures end at 272; t counts from time 0"
    else:
        np.save(folder / "spike.npy", events)
        table = folder / "exposures.csv"
        table.write_text(table.read_text().replace("[ticks]", "[s]"))
        message = r"no exposure .* Is the tick rate right, and the unit"
    with pytest.raises(BadFileError, match=message):
        plan_and_write(root)
    written = root / "good/spike/spike.dat"
    assert not written.exists() or written.stat().st_size < 2 * (len(events) * 24)


def test_endings_in_capitals_are_the_same(root, folder):
    before = plan_and_write(root)
    (folder / "spike.dat").rename(folder / "spike.DAT")
    assert plan_and_write(root, "again") == before


def swap(folder, first, second):
    """Exchange two files."""
    (folder / first).rename(folder / "other")
    (folder / second).rename(folder / first)
    (folder / "other").rename(folder / second)


def test_single_frames_of_another_time_are_named(root, folder):
    for kind in ("blur", "sharp"):
        swap(folder / kind, "img_002.png", "img_003.png")
    told = str(plan_and_write(root))
    assert "3 of 5 sampled exposures fit their own blurry frame best" in told
    assert "img_003 one before it, img_002 one after it" in told


def test_frames_of_one_number_are_refused_before_they_are_copied(root, folder):
    for kind in ("blur", "sharp"):
        (folder / kind / "img_003.png").rename(folder / kind / "other_002.png")
    with pytest.raises(DataSetError, match="frames numbered 2 exist under several names"):
        plan(SourceOptions(root))


def test_what_is_accepted_is_written_and_prepared(root, folder, capsys):
    """The sharp frames are stated 4 ticks late; the user knows better, and says so."""
    table = folder / "exposures.csv"
    header, *rows = table.read_text().splitlines()
    cells = [[int(cell) for cell in row.split(",")] for row in rows]
    table.write_text("\n".join([header, *(f"{k},{a},{b},{c + 4}" for k, a, b, c in cells)]))
    shutil.copytree(folder, root / "in/train/a")
    spikes = write_recorded(root / "in/val/b", seed=1)
    shutil.copy(folder / "spike.yaml", root / "in/val/b")
    write_spikes(root / "in/val/b/spike.dat", spikes, SpikeGeometry(*SPIKE_SIZE))
    config = write_config(root, root / "ours")
    assert prepare(config, "folders", root / "in") == 1
    assert '--accept "REASON"' in capsys.readouterr().err
    assert not (root / "ours/train/a").exists()
    assert prepare(config, "folders", root / "in", "--accept", "measured by hand") == 0
    assert "content: accepted: measured by hand" in capsys.readouterr().out
