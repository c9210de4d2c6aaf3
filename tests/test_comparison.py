"""Comparing two models: the same frames, the same training, the owner's rules."""

from types import SimpleNamespace

import pytest

from src.comparison.compare import apply_rules, check_tiles, overall, remarks
from src.comparison.runs import TrainedRun, check_comparable
from src.comparison.scores import BLURRY, blurry_frames, compare_frames
from src.config import config_to_text, load_config
from src.data.description import DataDescription, description_to_text
from src.inference.restore import evaluate, report_on
from src.inference.tiling import TileSettings
from src.metrics.motion_edges import find_motion_edges, score_motion_edges
from src.metrics.report import METRICS, Report
from src.paths import REPO_ROOT
from src.run_directory import RunDirectory
from tests.comparison_cases import NamedVideo, compared, restorer

DEMO = REPO_ROOT / "configs/deblur/demo.yaml"


def compare(videos, **restorers):
    methods = {BLURRY: blurry_frames, **{name: r.restore for name, r in restorers.items()}}
    return compare_frames(methods, videos, lpips=None, on_frame=lambda *_: None)


def test_every_method_gets_the_scores_that_testing_gives_it():
    videos = [NamedVideo("a", seed=1), NamedVideo("b", 2, seed=2)]
    restorers = {"near": restorer(0.02), "far": restorer(0.1)}
    found = Report(compare(videos, **restorers)[0], "p")
    assert found.methods == [BLURRY, "near", "far"]
    for name, one in restorers.items():
        rows = [row for *_, row in evaluate(one, videos, score_blurry=True)]
        alone = report_on(one, rows)
        means = found.means(name)
        assert {metric: means[metric] for metric in METRICS} == alone.means()
    assert {m: found.means(BLURRY)[m] for m in METRICS} == alone.means("blurry")
    summary = found.summary("near")
    parts = [summary["sequences"][name]["psnr_rgb"] for name in "ab"]
    assert summary["mean_over_sequences"]["psnr_rgb"] == pytest.approx(sum(parts) / 2)
    assert found.sequences == ["a"] * 4 + ["b"] * 2


def test_the_hash_names_the_frames():
    digests = [
        compare([NamedVideo(name, 2, seed)])[1]
        for name, seed in (("a", 1), ("a", 1), ("a", 2), ("b", 1))
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(("i", "around"), [(0, (None, 1)), (1, (0, 2)), (2, (1, None))])
def test_motion_is_looked_for_towards_the_frames_around(i, around):
    video = NamedVideo("a", 3, seed=1)
    before, after = (None if k is None else video.read_sharp(k) for k in around)
    expected = score_motion_edges(
        video.read_blurry(i), find_motion_edges(video.read_sharp(i), before, after)
    )
    assert expected["edge_error"] > 0
    assert compare([video])[0][i].scores[BLURRY].items() >= expected.items()


def test_models_that_are_cut_differently_are_not_compared():
    check_tiles(restorer(0.0), restorer(0.1))
    with pytest.raises(ValueError, match="give smaller tiles to both"):
        check_tiles(restorer(0.0), restorer(0.0, TileSettings(0, 32, 0, 8)))


def test_a_model_that_does_not_beat_its_input_is_named():
    (remark,) = remarks(compared([("a", 20.0, 31.0)]))
    assert remark.startswith("RGB-only baseline does not restore: its PSNR 20.00 dB is not above")
    assert remarks(compared([("a", 21.0, 31.0)])) == []
    (remark,) = remarks(compared([("a", 21.0, 31.0)], unet=20.000001))  # it changes nothing
    assert remark.startswith("plain U-Net does not restore: its PSNR 20.00 dB is not above")


def test_another_method_that_is_better_is_named():
    (remark,) = remarks(compared([("a", 21.0, 26.0)]))
    assert remark == "plain U-Net is better than VRT+Spike: 28.00 dB, VRT+Spike 26.00 dB"


INF = float("inf")
RULED = ("psnr_rgb", "lpips", "edge_sharpness", "edge_error")


@pytest.mark.parametrize(
    ("baseline", "spike", "words", "result"),
    [
        ((30, 0.1, 0.5, 0.5), (29.95, 0.105, 0.6, 0.5), "++++", "accepted"),
        ((30, 0.1, 0.5, 0.5), (29.94, 0.1, 0.6, 0.4), "-+++", "not accepted"),
        ((30, 0.1, 0.5, 0.5), (31, 0.106, 0.5, 0.6), "+---", "not accepted"),
        ((30, None, 0.5, 0.5), (31, None, 0.6, 0.4), "+?++", "not decided"),
        ((30, None, None, None), (29, None, None, None), "-???", "not accepted"),
        ((INF, 0, 1, 0), (INF, 0, 1.1, 0), "++++", "accepted"),
    ],
)
def test_the_rules_of_acceptance(baseline, spike, words, result):
    rules = apply_rules(
        *(dict(zip(RULED, x, strict=True)) for x in (baseline, spike)),
        notes=["LPIPS was not measured: no weights"],
    )
    outcomes = {"+": "pass", "-": "fail", "?": "not decided"}
    assert [rule.outcome for rule in rules] == [outcomes[word] for word in words]
    assert overall(rules) == result
    assert all(bool(rule.reason) == (rule.is_met is None) for rule in rules)
    if baseline[1] is None:
        assert rules[1].reason == "LPIPS was not measured: no weights"


def trained(*overrides, steps=650, data="", **state) -> TrainedRun:
    cfg = load_config(DEMO, list(overrides), check_paths=False)
    values = {
        "config": config_to_text(cfg), "precision": "fp32", "clips_per_step": 1,
        "vrt": "depths: [1]", "data": data, **state,
    }  # fmt: skip
    loaded = SimpleNamespace(cfg=cfg)
    return TrainedRun(RunDirectory.of(cfg), loaded, values, steps, None, {}, None)


def description(source):
    return description_to_text(DataDescription(source))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (trained("SEED", "7"), "SEED: the baseline has 123, VRT\\+Spike 7"),
        (trained("TRAIN.VAL_EVERY", "13"), "TRAIN.VAL_EVERY"),
        (trained("DATA.ROOT", "data/other"), "DATA.ROOT"),
        (trained(steps=600), "trained for 650 steps, VRT\\+Spike 600"),
        (trained(precision="bf16"), "the baseline has fp32, VRT\\+Spike bf16"),
        (trained(clips_per_step=8), "the baseline has 1, VRT\\+Spike 8"),
        (trained(vrt="depths: [2]"), "VRT's arguments differ"),
        (trained(data=description("GoPro")), "Spike's data have a dataset.yaml, the baseline's"),
        (trained("MODEL.USE_SPIKE", "false"), "must be without spikes"),
    ],
)
def test_runs_that_were_trained_differently_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        check_comparable(trained("MODEL.USE_SPIKE", "false"), change)


def test_runs_that_were_trained_alike_are_compared():
    baseline = trained("MODEL.USE_SPIKE", "false", "EXP_NAME", "t", data=description("GoPro"))
    spike = trained("VAL.TILE_SIZE", "64", "TRAIN.NUM_WORKERS", "3", data=description("GoPro"))
    check_comparable(baseline, spike)
    other = trained(data=description("GoPro 8x interpolated"))
    with pytest.raises(ValueError, match="data: source was GoPro, is GoPro 8x"):
        check_comparable(baseline, other)
