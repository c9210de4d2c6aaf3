"""The command on published spikes: made, prepared, checked; a second run has nothing to do."""

from tests.source_cases import bytes_of, prepare, prepare_data, tick_errors, write_config
from tests.spike_source_cases import write_gopro_clip

CLIPS = {"train": "GOPR0384_11_02", "test": "GOPR0385_11_01"}


def test_from_download_to_training_set(tmp_path, capsys):
    for split, clip in CLIPS.items():
        write_gopro_clip(tmp_path / "down", clip, split=split, frames=5)
    config, root = write_config(tmp_path, tmp_path / "ours"), tmp_path / "ours"
    assert prepare(config, "spk_gopro", tmp_path / "down") == 0
    said = capsys.readouterr().out
    assert "train/GOPR0384_11_02: 000001 is left out: its exposure begins 2 source" in said
    assert "train: 1 sequences, 4 frames, 4 aligned" in said
    for folder in (root / "train" / CLIPS["train"], root / "val" / CLIPS["test"]):
        assert max(map(abs, tick_errors(folder).values())) <= 0.5
    before = bytes_of(root)
    assert prepare(config, "spk_gopro", tmp_path / "down") == 0
    assert "2 sequences were there already" in capsys.readouterr().out
    assert bytes_of(root) == before
    assert prepare_data.main(["--config", str(config), "--check_only"]) == 0, capsys.readouterr()
    assert prepare(config, "spk_gopro", tmp_path / "down", "--blur_kind", "blur_gamma") == 1
    assert "blur_kind" in capsys.readouterr().err
