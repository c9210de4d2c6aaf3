"""The page of a comparison: one file, well formed, nothing from outside, nothing unescaped."""

import base64
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from src.comparison.compare import Comparison, apply_rules, paired_differences
from src.comparison.examples import ExampleChoice, error_map, motion_regions, pictures_of
from src.comparison.page import plot_differences, plot_validations, render_page
from src.comparison.runs import OtherNetwork, TrainedRun
from src.comparison.scores import BLURRY, RGB_ONLY, SPIKE, UNET, FrameImages
from src.config import config_to_text, load_config
from src.metrics.motion_edges import find_motion_edges
from src.metrics.paired import Interval
from src.paths import REPO_ROOT
from src.run_directory import RunDirectory
from tests.comparison_cases import compared, grey

VOID = {"meta", "img", "input"}
ROWS = [("<b>a</b>", 30.0, 31.0), ("<b>a</b>", 30.0, 29.5), ("c", 20.0, 25.0)]


class Page(HTMLParser):
    """Collects tags that are not closed, what is loaded, and the text."""

    def __init__(self, source):
        super().__init__()
        self.open, self.loaded, self.text, self.tags = [], [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loaded += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def images(level):
    sharp = grey(0)
    sharp[:, 10:20] = 200
    before = np.roll(sharp, 4, axis=1)
    versions = {BLURRY: grey(90), RGB_ONLY: grey(80), UNET: grey(70), SPIKE: grey(level)}
    return FrameImages(versions, sharp, find_motion_edges(sharp, before, None))


def comparison() -> Comparison:
    frames, choice = compared(ROWS), ExampleChoice()
    for i, frame in enumerate(frames.frames):
        choice.take(frame, images(100 + i))
    frames.notes.append("LPIPS: <no weights>")
    record = {"file": "plain_unet.pth", "sha256": "1" * 64, "step": 9, "compute_s": 421.4}
    rules = apply_rules(frames.means(RGB_ONLY), frames.means(SPIKE), notes=["LPIPS: <no weights>"])
    return Comparison(
        baseline=trained("t", use_spike=False),
        spike=trained("s", use_spike=True),
        others={UNET: OtherNetwork(nn.Linear(2, 1), record)},
        frames=frames,
        seconds_per_frame={RGB_ONLY: 0.1, UNET: 0.3, SPIKE: 0.2},
        inputs_sha256="0" * 64,
        differences=paired_differences(frames, seed=0),
        rules=rules,
        examples=choice.examples,
        seed=0,
        device="cpu, 1.00 GiB at most",
        commit="abc+changes",
    )


def trained(name, *, use_spike) -> TrainedRun:
    overrides = ["EXP_NAME", name, "MODEL.USE_SPIKE", str(use_spike).lower()]
    cfg = load_config(REPO_ROOT / "configs/deblur/demo.yaml", overrides, check_paths=False)
    identity = {"file": f"{name}/best.pth", "sha256": "0" * 64, "step": 4}
    model = SimpleNamespace(parameters=lambda: iter([torch.zeros(2_000_000)]))
    loaded = SimpleNamespace(cfg=cfg, identity=identity, model=model)
    state = {"config": config_to_text(cfg), "precision": "fp32", "clips_per_step": 1}
    return TrainedRun(RunDirectory.of(cfg), loaded, state, 4, 77.0, {2: 20.0, 4: 21.0}, 1.5)


def test_the_page_is_well_formed_and_needs_nothing():
    source = render_page(comparison())
    page = Page(source)
    assert page.open == []
    assert page.loaded  # the pictures are in it
    assert all(value.startswith("data:image/") for value in page.loaded)
    assert page.tags.count("input") == 3  # a slider per example
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "url(" not in source
    assert "@import" not in source
    text = " ".join(page.text)
    for words in (
        "not decided", "<b>a</b>", "LPIPS: <no weights>", "c/000002", "2.00 M", "abc+changes",
        "MODEL.USE_SPIKE", "+1.833", "Validation while training", "error of VRT+Spike",
        "plain_unet.pth", "421", "77", "40.000", "bound at spike resolution",
    ):  # fmt: skip
        assert words in text, words


def test_numbers_of_a_comparison_are_strict_json():
    content = comparison().to_json()
    assert content["result"] == "not accepted"  # equal edges are not sharper ones
    assert content["differences"]["psnr_rgb"]["mean"] == pytest.approx((1 - 0.5 + 5) / 3)
    assert content["differences"]["lpips"] is None
    assert content["sequences"]["c"][SPIKE]["psnr_rgb"] == 25.0
    assert (content["runs"][RGB_ONLY]["steps"], content["runs"][UNET]["compute_s"]) == (4, 421.4)


def test_the_examples_are_the_extremes_and_each_is_shown_once():
    examples = comparison().examples
    assert [(e.frame.frame, e.why) for e in examples] == [
        ("000000", "most blurred input"),
        ("000002", "largest gain of VRT+Spike"),
        ("000001", "least gain of VRT+Spike"),
    ]
    own = examples[1].images.versions[SPIKE]  # not those of the last frame
    assert own[0, 0, 0] == 102


def test_pictures_by_hand():
    regions = motion_regions(images(0))
    assert len(regions) == 3  # both edges of the stripe move, over the whole height
    for rows, columns in regions:
        assert (rows.stop - rows.start, columns.stop - columns.start) == (10, 12)
        assert columns.start <= 9 < columns.stop or columns.start <= 20 < columns.stop
    assert len({rows.start for rows, _ in regions}) > 1
    shown = pictures_of(comparison().examples[0])
    assert [name for _, name in shown.slider] == [BLURRY, SPIKE]
    assert [[name for _, name in row] for row in shown.details] == [
        [BLURRY, RGB_ONLY, SPIKE, "sharp"]
    ] * 3
    assert (error_map(grey(5), grey(5)).max(axis=2) < 10).all()  # no error is black
    bright = error_map(grey(200), grey(5))
    assert (bright.astype(int).sum(axis=2) > 500).all()


def svg(uri: str) -> str:
    kind, _, content = uri.partition(";base64,")
    assert kind == "data:image/svg+xml"
    return base64.b64decode(content).decode()


def test_plots_hold_their_values_and_need_nothing():
    curves = {RGB_ONLY: {4: 21.0, 2: 20.0}, SPIKE: {2: 20.0}}
    plot = plot_validations(curves, ("blurry input", 19.0))
    source = svg(plot)
    assert 'href="http' not in source
    assert "<script" not in source
    assert plot == plot_validations(curves, ("blurry input", 19.0)), "equal plots, equal bytes"
    assert plot != plot_validations(curves | {SPIKE: {2: 20.5}}, ("blurry input", 19.0))
    assert svg(plot_validations({RGB_ONLY: {7: 20.0}, SPIKE: {}}, ("b", float("inf"))))
    assert plot_validations({RGB_ONLY: {}, SPIKE: {}}, ("blurry input", 19.0)) is None


def test_differences_in_a_plot():
    given = ["a", "a", "b"], 0.4, Interval(0.1, 0.7)
    plots = [plot_differences([0.5, -0.25, last], *given) for last in (1.0, 1.0, -1.0)]
    assert plots[0] == plots[1] != plots[2]
    assert plot_differences([float("inf")], ["a"], 1.0, None) is None
