"""The training losses; VGG with small random files, never the network."""

import math
import urllib.error

import pytest
import torch
from torch import nn
from torchvision.models import vgg16, vgg19
from torchvision.models.vgg import cfgs, make_layers

from src.config import get_defaults
from src.losses.build import build_loss
from src.losses.charbonnier import CharbonnierLoss, charbonnier
from src.losses.vgg_perceptual import VGGPerceptualLoss, layer_positions
from src.models import downloads

NAME = "vgg16-397923af.pth"


@pytest.fixture(scope="session", name="extract")
def _extract(tmp_path_factory):
    """An extract of a VGG16 with random weights: the layers up to relu3_3, indices 0 to 15."""
    torch.manual_seed(0)
    features = make_layers(cfgs["D"])[:16]
    path = tmp_path_factory.mktemp("vgg") / "extract.pth"
    torch.save({f"features.{key}": value for key, value in features.state_dict().items()}, path)
    return path


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    """Give every test an empty hub cache and a network that is down."""

    def refuse(url, timeout):
        assert timeout > 0, "without a timeout a dropped packet costs minutes"
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(downloads.urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_charbonnier_by_hand():
    target = torch.zeros(1, 3, 1, 2)
    prediction = target.clone()
    prediction[0, 0, 0, 0] = 3.0
    want = (math.sqrt(9 + 16) + 5 * 4.0) / 6
    assert charbonnier(prediction, target, delta=4.0).item() == pytest.approx(want)
    assert charbonnier(target, prediction, delta=4.0).item() == pytest.approx(want)
    assert charbonnier(prediction[None], target[None], delta=4.0).item() == pytest.approx(want)
    assert CharbonnierLoss()(target, target).item() == pytest.approx(1e-3)


def test_charbonnier_gradient():
    a = images(1, 3, 2, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: charbonnier(x, torch.ones_like(x), 0.1), a)
    same = torch.zeros(1, 3, 2, 2, requires_grad=True)
    charbonnier(same, torch.zeros_like(same)).backward()
    assert same.grad.abs().max() == 0, "no NaN where prediction and target agree"


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        ((1, 3, 4, 4), (1, 3, 4, 5), r"prediction has shape \[1, 3, 4, 4\], target \[1, 3, 4, 5\]"),
        ((1, 3, 4, 4), (1, 1, 4, 4), "must be equal"),
        ((3, 4, 4), (3, 4, 4), r"needed is \[B, T, 3, H, W\] or \[N, 3, H, W\]"),
        ((1, 4, 4, 4), (1, 4, 4, 4), r"needed is"),
    ],
)
def test_images_that_do_not_fit_are_refused(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        charbonnier(torch.zeros(prediction), torch.zeros(target))
    with pytest.raises(ValueError, match="DELTA is 0"):
        CharbonnierLoss(0)


@pytest.mark.parametrize(("backbone", "build"), [("vgg16", vgg16), ("vgg19", vgg19)])
def test_layer_positions_are_the_relus_of_torchvision(backbone, build):
    with torch.device("meta"):
        features = build(weights=None).features
    positions = layer_positions(backbone)
    assert [i for i, layer in enumerate(features) if isinstance(layer, nn.ReLU)] == list(
        positions.values()
    )
    names = {"vgg16": ("relu3_3", 15), "vgg19": ("relu5_4", 35)}
    assert positions[names[backbone][0]] == names[backbone][1]


@pytest.mark.parametrize("criterion", ["l1", "l2"])
@torch.no_grad()
def test_perceptual_loss_equals_its_twin(extract, criterion):
    """Torchvision's layers one after the other, in place as they are, on normalised images."""
    loss = VGGPerceptualLoss(["relu3_3", "relu1_2"], criterion=criterion, weights=str(extract))
    features = make_layers(cfgs["D"])[:16]
    features.load_state_dict(
        {key[9:]: value for key, value in torch.load(extract, weights_only=True).items()}
    )
    a, b = images(2, 2, 3, 16, 16), images(2, 2, 3, 16, 16, seed=1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x, y = ((v.flatten(0, 1) - mean[:, None, None]) / std[:, None, None] for v in (a, b))
    distance = {"l1": nn.L1Loss(), "l2": nn.MSELoss()}[criterion]
    first = distance(features[:4](x), features[:4](y))
    third = distance(features(x), features(y))
    torch.testing.assert_close(loss(a, b), (first + third) / 2)
    torch.testing.assert_close(loss(a.flatten(0, 1), b.flatten(0, 1)), (first + third) / 2)
    assert loss(a, a) == 0


def test_perceptual_loss_is_frozen_cut_and_in_float32(extract):
    loss = VGGPerceptualLoss(weights=str(extract)).train()
    assert len(loss.features) == 16
    assert not loss.training
    assert not any(p.requires_grad for p in loss.parameters())
    prediction = images(1, 3, 16, 16).requires_grad_()
    target = images(1, 3, 16, 16, seed=1).requires_grad_()
    want = loss(prediction, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(prediction, target)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)
    got.backward()
    assert prediction.grad.abs().max() > 0
    assert target.grad is None


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"layers": ["relu3_4"]}, ValueError, r"is \['relu3_4'\]; vgg16 has \['relu1_1'"),
        ({"layers": []}, ValueError, r"LAYERS is \[\]"),
        ({"backbone": "vgg11"}, ValueError, "'vgg11' is none of"),
        ({"criterion": "huber"}, ValueError, "'huber' is none of"),
        ({"layers": ["relu4_1"]}, RuntimeError, r"lacks .*features\.17\.weight.*WEIGHT 0"),
        # VGG19 has a fourth convolution in block 3, so 16 is no pooling layer there.
        ({"layers": ["relu3_4"], "backbone": "vgg19"}, RuntimeError, r"lacks .*features\.16"),
    ],
)
def test_what_the_network_or_its_file_does_not_have(extract, settings, error, message):
    with pytest.raises(error, match=message):
        VGGPerceptualLoss(weights=str(extract), **settings)


def test_without_weights_and_network_the_message_says_what_to_do(tmp_path):
    with pytest.raises(RuntimeError) as caught:
        VGGPerceptualLoss()
    message = str(caught.value)
    for part in (
        str(tmp_path / "hub/checkpoints" / NAME),
        f"https://download.pytorch.org/models/{NAME}",
        "LOSS.VGG_PERCEPTUAL.WEIGHTS",
        "LOSS.VGG_PERCEPTUAL.WEIGHT 0",
        "Name or service not known",
    ):
        assert part in message
    assert not (tmp_path / "hub").exists(), "nothing half-written stays"


def test_a_file_in_the_format_before_torch_1_6_is_read(tmp_path, extract):
    """The published VGG files are in it."""
    path = tmp_path / "legacy.pth"
    torch.save(torch.load(extract), path, _use_new_zipfile_serialization=False)
    want, got = (VGGPerceptualLoss(weights=str(p)).state_dict() for p in (extract, path))
    assert all(torch.equal(got[key], want[key]) for key in want)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"version https://git-lfs.github.com/spec/v1\n", b"PK\3\4"]
)
def test_a_file_that_is_no_weights_file_is_refused(tmp_path, content):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match="broken.pth cannot be read as weights"):
        VGGPerceptualLoss(weights=str(path))
    with pytest.raises(RuntimeError, match="absent.pth cannot be read as weights"):
        VGGPerceptualLoss(weights=str(tmp_path / "absent.pth"))


def test_the_built_loss_is_the_weighted_sum(extract):
    cfg = get_defaults()
    cfg.LOSS.VGG_PERCEPTUAL.WEIGHTS = str(extract)
    cfg.LOSS.CHARBONNIER.WEIGHT = 2.0
    loss = build_loss(cfg)
    a, b = images(1, 2, 3, 16, 16).requires_grad_(), images(1, 2, 3, 16, 16, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, parts = loss(a.bfloat16(), b)
    assert total.dtype == torch.float32
    assert set(parts) == {"charbonnier", "perceptual"}
    assert not any(part.requires_grad for part in parts.values())
    torch.testing.assert_close(parts["charbonnier"], charbonnier(a.bfloat16().float(), b).detach())
    assert total.item() == pytest.approx(2 * parts["charbonnier"] + 0.1 * parts["perceptual"])
    total.backward()
    assert a.grad.abs().max() > 0


def test_a_term_of_weight_zero_is_not_built():
    cfg = get_defaults()
    cfg.LOSS.VGG_PERCEPTUAL.WEIGHT = 0.0
    a = images(1, 3, 8, 8)
    total, parts = build_loss(cfg)(a, a)
    assert list(parts) == ["charbonnier"]
    assert total.item() == pytest.approx(1e-3)
    cfg.LOSS.CHARBONNIER.WEIGHT = 0.0
    with pytest.raises(ValueError, match="every WEIGHT is 0"):
        build_loss(cfg)
    cfg.LOSS.VGG_PERCEPTUAL.WEIGHT = 0.1
    with pytest.raises(RuntimeError, match="cannot be downloaded"):
        build_loss(cfg)
