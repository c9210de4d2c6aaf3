import hashlib
import json
import math

import numpy as np
import pytest
import torch
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from src.metrics.lpips_metric import (
    ALEXNET,
    LpipsMetric,
    LpipsUnavailableError,
    find_weights,
)
from src.metrics.psnr_ssim import psnr, psnr_y, rgb_to_y, ssim, ssim_y
from src.metrics.report import (
    METRICS,
    FrameScores,
    Report,
    format_table,
    merge_reports,
    score_frame,
)

# The settings under which scikit-image computes what BasicSR and VRT compute.
SSIM_SETTINGS = {
    "gaussian_weights": True,
    "sigma": 1.5,
    "use_sample_covariance": False,
    "data_range": 255,
}


def photograph(name: str) -> np.ndarray:
    return np.ascontiguousarray(getattr(data, name)()[40:200, 60:252, :3])


def quantized(image: np.ndarray) -> np.ndarray:
    return image // 16 * 16


def smeared(image: np.ndarray) -> np.ndarray:
    shifted = [np.roll(image, k, axis=1).astype(np.uint16) for k in range(8)]
    return (sum(shifted) // 8).astype(np.uint8)


def noisy(image: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(5).integers(-20, 21, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "degrade"),
    [("astronaut", quantized), ("astronaut", smeared), ("chelsea", noisy), ("coffee", smeared)],
)
def test_scores_equal_those_of_scikit_image(name, degrade):
    sharp = photograph(name)
    image = degrade(sharp)
    ours = psnr(image, sharp), ssim(image, sharp), psnr_y(image, sharp), ssim_y(image, sharp)
    luma = rgb_to_y(image), rgb_to_y(sharp)
    theirs = (
        peak_signal_noise_ratio(sharp, image, data_range=255),
        structural_similarity(image, sharp, channel_axis=2, **SSIM_SETTINGS),
        peak_signal_noise_ratio(luma[1], luma[0], data_range=255),
        structural_similarity(*luma, **SSIM_SETTINGS),
    )
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_psnr_by_hand():
    sharp = np.zeros((2, 2, 3), np.uint8)
    image = sharp.copy()
    image[0, 0] = 6, 0, 0
    image[1, 1] = 0, 0, 12  # squared error (36 + 144) / 12 = 15
    assert psnr(image, sharp) == pytest.approx(
        20 * math.log10(255) - 10 * math.log10(15), abs=1e-12
    )
    assert psnr(sharp, image) == psnr(image, sharp)
    black, white = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)
    assert psnr(black, white) == 0.0
    assert psnr_y(black, white) == pytest.approx(20 * math.log10(255 / 219), abs=1e-12)


def test_luma_by_hand():
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]])
    luma = rgb_to_y(colours.astype(np.uint8))
    assert luma.dtype == np.float64
    assert luma[0].tolist() == pytest.approx([16, 235, 81.481, 144.553, 40.966], abs=1e-12)


def test_f47_equal_images_give_infinity_and_one():
    image = photograph("chelsea")
    assert psnr(image, image) == psnr_y(image, image) == math.inf
    assert ssim(image, image) == pytest.approx(1, abs=1e-12)
    assert ssim_y(image, image) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("metric", [psnr, ssim, psnr_y, ssim_y])
def test_wrong_images_are_refused(metric):
    image = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(
        ValueError, match=r"restored image: expected uint8 \[H, W, 3\], got float32"
    ):
        metric(image.astype(np.float32), image)
    with pytest.raises(ValueError, match=r"sharp image: expected uint8 \[H, W, 3\].*\[16, 16\]"):
        metric(image, image[..., 0])
    with pytest.raises(ValueError, match="restored image is 16 x 12 pixels, sharp image 16 x 16"):
        metric(image[:, :12], image)
    if metric in (ssim, ssim_y):
        with pytest.raises(ValueError, match="at least 11 x 11 pixels, got 10 x 16"):
            metric(image[:10], image[:10])


def row(sequence: str, frame: str, psnr_rgb: float, **others) -> FrameScores:
    scores = {"psnr_rgb": psnr_rgb, "ssim_rgb": 0.5, "psnr_y": 30.0, "ssim_y": 0.75, "lpips": None}
    return FrameScores(sequence, frame, {"restored": scores | others})


def test_means_over_frames_and_over_sequences_differ():
    rows = [row("a", "0", 10.0), row("a", "1", 20.0), row("a", "2", 30.0), row("b", "0", 40.0)]
    result = Report(rows, "p").summary()
    means = result["mean_over_frames"], result["mean_over_sequences"], result["sequences"]["a"]
    assert [mean["psnr_rgb"] for mean in means] == [25.0, 30.0, 20.0]


def test_a_metric_that_one_frame_lacks_has_no_mean_but_that_of_motion_edges():
    rows = [row("a", "0", 10.0, lpips=0.5, edge_error=1.0), row("a", "1", 10.0, edge_error=None)]
    for chosen, lpips in ((rows, None), (rows[:1], 0.5)):
        means = Report(chosen, "p").means()
        assert (means["lpips"], means["edge_error"]) == (lpips, 1.0)


def test_f47_infinite_scores_stay_valid_json():
    report = Report([row("a", "0", math.inf), row("a", "1", 20.0)], "protocol", ["a note"])
    stored = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert stored["restored"]["mean_over_frames"]["psnr_rgb"] == "inf"
    assert stored["restored"]["num_infinite"] == 1
    assert [frame["psnr_rgb"] for frame in stored["frames"]] == ["inf", 20.0]
    assert stored["frames"][0]["sequence"] == "a"
    assert (stored["protocol"], stored["notes"]) == ("protocol", ["a note"])
    assert "blurry" not in stored


def test_f45_nan_scores_are_refused():
    with pytest.raises(ValueError, match="seq/000: psnr_rgb is not a number"):
        row("seq", "000", math.nan)


def test_reports_of_ranks_join_to_the_report_of_one_process():
    rows = [row(s, str(i), 10.0 + 0.1 * i + len(s)) for s in ("a", "bb") for i in range(7)]
    whole = Report(rows, "p", ["n"])
    joined = merge_reports([Report(rows[7:], "p", ["n"]), Report(rows[:7], "p", ["n"])])
    assert joined.to_json() == whole.to_json()
    with pytest.raises(ValueError, match="reports of one protocol can be merged"):
        merge_reports([whole, Report(rows, "other")])


def test_table_shows_every_metric():
    sharp = photograph("coffee")[:16, :16]
    table = format_table([("blurry", score_frame(quantized(sharp), sharp))])
    header, line = table.splitlines()
    assert header.split() == ["method", *METRICS]
    assert line.split()[0] == "blurry"
    assert line.split()[1] == f"{psnr(quantized(sharp), sharp):.3f}"
    assert line.split()[-1] == "-"


def make_trunk_file(path):
    """Write AlexNet features of random weights in torch's old format; return the checksum."""
    torch.manual_seed(0)
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3)}
    shapes |= {8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    state = {}
    for layer, shape in shapes.items():
        state[f"features.{layer}.weight"] = 0.05 * torch.randn(shape)
        state[f"features.{layer}.bias"] = torch.zeros(shape[0])
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.filterwarnings("ignore::UserWarning")  # lpips uses deprecated arguments
def test_lpips_uses_the_weights_of_the_file(tmp_path):
    import lpips

    path = tmp_path / ALEXNET.name
    checksum = make_trunk_file(path)
    metric = LpipsMetric(path, sha256=checksum)
    sharp = photograph("astronaut")[:64, :64]
    image = noisy(sharp)
    assert metric(sharp, sharp) == 0.0
    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    stored = torch.load(path, weights_only=True)
    for name, parameter in reference.net.named_parameters():
        parameter.data.copy_(stored["features." + name.split(".", 1)[1]])
    pair = [torch.from_numpy(x).permute(2, 0, 1)[None] / 255 for x in (image, sharp)]
    expected = float(reference(*pair, normalize=True))
    assert expected > 0.001
    assert metric(image, sharp) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="LPIPS needs images of at least 32 x 32"):
        metric(image[:16], sharp[:16])


def test_lpips_refuses_other_weights_under_the_published_name(tmp_path):
    make_trunk_file(tmp_path / ALEXNET.name)
    with pytest.raises(
        LpipsUnavailableError, match="is not the published alexnet-owt-7be5be79.pth"
    ):
        LpipsMetric(tmp_path / ALEXNET.name)


def test_f54_absent_lpips_weights_name_the_file_and_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # there is no network
    place = tmp_path / "hub" / "checkpoints" / ALEXNET.name
    with pytest.raises(LpipsUnavailableError, match=str(place)) as raised:
        find_weights()
    assert "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth" in str(raised.value)
    place.parent.mkdir(parents=True)
    place.touch()
    with pytest.raises(LpipsUnavailableError, match="is damaged or another file"):
        find_weights()
    with pytest.raises(LpipsUnavailableError, match="absent.pth does not exist"):
        find_weights(tmp_path / "absent.pth")
