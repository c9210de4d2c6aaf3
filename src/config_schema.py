"""Every configuration key: its default, what values it may take, what it means.

Defaults, checks and the table in `docs/CONFIG_GUIDE.md` come from this tree. Lists and numbers are
written as a YAML file would hold them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Value = Any


@dataclass(frozen=True)
class Key:
    """One leaf of the configuration.

    The type of the default is that of every value; an int is accepted for a float, and a list's
    first element gives the type of its elements.
    """

    default: Value
    meaning: str  # one sentence for the configuration guide
    rule: tuple[str, Callable[[Value], bool]] | None = None  # in words, and the test
    optional_path: bool = False  # names a file that must exist unless it is empty
    spellings: Mapping[str, Value] = field(default_factory=dict)  # other ways, in lower case


def one_of(*choices: Value) -> tuple[str, Callable[[Value], bool]]:
    """Return the rule that a value is one of `choices`."""
    return f"one of {', '.join(map(str, choices))}", lambda value: value in choices


POSITIVE = ("a number > 0", lambda v: v > 0)
NOT_NEGATIVE = ("a number >= 0", lambda v: v >= 0)
AT_LEAST_1 = ("a number >= 1", lambda v: v >= 1)
FRACTION = ("a number from 0 to 1", lambda v: 0 <= v <= 1)
DROPOUT = ("a number >= 0 and < 1", lambda v: 0 <= v < 1)
NAME = ("a folder name without slashes", lambda v: bool(v) and "/" not in v and ".." not in v)
OPTIONAL_NAME = (
    "a name without slashes that does not begin with a dot",
    lambda v: "/" not in v and "\\" not in v and not v.startswith("."),
)
POSITIVE_LIST = ("a list of numbers > 0", lambda v: len(v) > 0 and all(x > 0 for x in v))
BETAS = ("two numbers >= 0 and < 1", lambda v: len(v) == 2 and all(0 <= x < 1 for x in v))
EXTENSIONS = ("a list like ['.png']", lambda v: len(v) > 0 and all(x.startswith(".") for x in v))
MULTIPLE_OF_8 = ("a multiple of 8, at least 16", lambda v: v >= 16 and v % 8 == 0)
TILE_SIZE = (
    "0 (whole frames) or a multiple of 8, at least 32",
    lambda v: v == 0 or v >= 32 and v % 8 == 0,
)
OVERLAP = ("a multiple of 8, at least 0", lambda v: v >= 0 and v % 8 == 0)
FREEZABLE = ("a list of: spynet, deform", lambda v: all(x in ("spynet", "deform") for x in v))


def _chunking() -> dict[str, Key]:
    return {
        "HEADS": Key(4, "Attention heads; a divisor of all CHANNELS_PER_SCALE.", POSITIVE),
        "DROPOUT": Key(0.0, "Dropout inside the attention and its MLP.", DROPOUT),
        "MLP_RATIO": Key(2.0, "Hidden width of the MLP, in channels of the scale.", POSITIVE),
        "ADAPTIVE_CHUNK": Key(True, "Take the largest chunk that MAX_BATCH_TOKENS allows."),
        "MAX_BATCH_TOKENS": Key(49152, "Most tokens (pixels x frames) in one chunk.", POSITIVE),
        "CHUNK_SIZE": Key(64, "Side of a chunk in pixels without ADAPTIVE_CHUNK.", POSITIVE),
        "CHUNK_SHAPE": Key("square", "Shape of a chunk.", one_of("square", "wide", "tall")),
    }


def _strides(axis: str, default: list[int]) -> Key:
    meaning = f"Stride in {axis} of scales 2-4."
    return Key(default, meaning, POSITIVE_LIST, spellings={"none": default})


def _part(what: str = "") -> dict[str, Key]:
    what = f"; {what}" if what else ""
    meaning = f"Steps before which this part of the model is not trained{what}."
    return {
        "FREEZE_STEPS": Key(0, meaning, NOT_NEGATIVE),
        "LR_MULTIPLIER": Key(1.0, "Its learning rate as a multiple of the schedule's.", POSITIVE),
    }


# What keys are called in older code, for the hint at an unknown key.
FORMER_KEYS = {"NUM_VOXEL_BINS": "DATA.K"}

SCHEMA: dict[str, Any] = {
    "SEED": Key(123, "Seed of weights, data order and augmentation.", NOT_NEGATIVE),
    "EXP_NAME": Key("", "Name of the run's folders; empty: that of the YAML file.", OPTIONAL_NAME),
    "DEVICE": Key("auto", "Device; auto is CUDA if there is a GPU.", one_of("auto", "cuda", "cpu")),
    "DATA": {
        "ROOT": Key("data/gopro_spike", "The folder with the splits; see DATALOADER_GUIDE."),
        "DEMO": Key(False, "Generate the demo data at ROOT if they are missing."),
        "TRAIN_SPLIT": Key("train", "Folder of the training sequences.", NAME),
        "VAL_SPLIT": Key("val", "Folder of the validation sequences.", NAME),
        "CLIP_LEN": Key(5, "Frames per training clip, T.", POSITIVE),
        "CROP_SIZE": Key(256, "Side of the training crop in RGB pixels.", MULTIPLE_OF_8),
        "K": Key(32, "Voxel bins per exposure.", POSITIVE),
        "NORM": {
            "MEAN": Key(0.0, "Mean of log1p(count) in training; prepare_data.py writes it."),
            "STD": Key(1.0, "Its standard deviation; prepare_data.py writes it.", POSITIVE),
        },
        "BIN_NORMALIZE": Key(False, "Divide the count of a bin by the ticks that fall into it."),
        "GAIN": Key(1.0, "Factor on the counts before the logarithm.", POSITIVE),
        "MATCH_LIGHT": Key(
            False,
            "Scale the counts of a clip so that their mean is the mean luma of its blurry frames; "
            "the threshold of the spike camera then does not matter. DATA.NORM is not measured.",
        ),
        "CENTER_SHARP": Key(
            False,
            "Shift the bins of an exposure by whole bins, so that the instant of its sharp frame, "
            "t_sharp in exposures.csv, is in the middle; the outermost bin is repeated.",
        ),
        "IMAGE_EXTS": Key([".png", ".jpg", ".jpeg", ".bmp"], "Names of images end so.", EXTENSIONS),
        "SPIKE_DIR": Key("spike", "Folder of a sequence with its .dat files.", NAME),
        "VOXEL_CACHE_DIRNAME": Key("spike_vox", "Folder of a sequence with voxel counts.", NAME),
        "USE_PRECOMPUTED_VOXELS": Key(False, "Read counts from spike_vox; false: from the .dat."),
        "ALIGN_LOG_PATHS": Key([""], "Alignment logs; empty: logs/align_<root's name>.txt."),
        "FRAME_CACHE": Key(True, "Keep decoded training frames in frame_cache of each sequence."),
        "USE_RAM_CACHE": Key(False, "Keep decoded frames in memory, separately in every worker."),
        "CACHE_SIZE_GB": Key(4.0, "Largest memory of one worker's frame cache, in GB.", POSITIVE),
        "PRELOAD": Key(False, "Fill the frame cache before training; an error if it does not fit."),
        "MAX_BAD_FRACTION": Key(0.01, "Share of dropped samples that ends a training.", FRACTION),
        "AUGMENT": {
            "FLIP": Key(True, "Random horizontal and vertical flips of a clip."),
            "TRANSPOSE": Key(True, "Random exchange of height and width."),
            "REVERSE": Key(False, "Random reversal of time: of frames and of voxel bins."),
            "SPIKES": Key(False, "Random defects of the spike camera: lost spikes, bad pixels."),
        },
    },
    "MODEL": {
        "USE_SPIKE": Key(True, "False: plain VRT on the RGB frames alone."),
        "VRT_CFG": Key("configs/vrt/vrt_base.yaml", "YAML file with VRT's arguments."),
        "SPYNET": Key(
            "",
            "Weights of the flow estimator: a path, 'download', 'none' for none; empty: random.",
            spellings={"none": "none"},
        ),
        "CHANNELS_PER_SCALE": Key(
            [96, 96, 96, 96], "Spike channels per scale; VRT's widths of stages 1-4.", POSITIVE_LIST
        ),
        "LAYERS": Key(4, "Number of scales; VRT has four.", ("4", lambda v: v == 4)),
        "SPIKE_ENCODER": {
            "TEMPORAL_STRIDES": _strides("time", [1, 1, 1]),
            "SPATIAL_STRIDES": _strides("space", [2, 2, 2]),
        },
        "SPIKE_TSA": _chunking(),
        "FUSE": {
            "TYPE": Key("TemporalCrossAttn", "Kind of fusion.", one_of("TemporalCrossAttn")),
            **_chunking(),
            "TIME_SLOPE": Key(8.0, "Bias on the distance in time; 0: none.", NOT_NEGATIVE),
        },
        "PIXEL_UNSHUFFLE": Key(
            1, "VRT works on frames of 1/r the size with 3 r^2 channels.", one_of(1, 2, 4)
        ),
        "FIRST_ESTIMATE": Key(0, "Channels of a small network before VRT; 0: none.", NOT_NEGATIVE),
        "FIRST_ESTIMATE_GROWTH": Key(
            2.0, "Channels of its coarser levels, as a multiple of the finer one's.", AT_LEAST_1
        ),
        "OUTPUT_GAIN": Key(
            1.0, "Factor on VRT's last convolution; 0 starts as the identity.", NOT_NEGATIVE
        ),
        "USE_CHECKPOINT_ATTN": Key(True, "Recompute attention in the backward pass: less memory."),
        "USE_CHECKPOINT_FFN": Key(True, "Recompute MLPs in the backward pass."),
        "PRETRAINED": Key(
            "", "Initial weights: a checkpoint, or official VRT weights.", optional_path=True
        ),
    },
    "TRAIN": {
        "EPOCHS": Key(80, "Passes over the training clips, if MAX_STEPS is 0.", POSITIVE),
        "MAX_STEPS": Key(0, "Total optimiser steps; 0: computed from EPOCHS.", NOT_NEGATIVE),
        "BATCH_SIZE": Key(1, "Clips per rank and backward pass.", POSITIVE),
        "GRADIENT_ACCUMULATION_STEPS": Key(6, "Backward passes per optimiser step.", POSITIVE),
        "NUM_WORKERS": Key(8, "Loader processes per rank; 0 loads in the trainer.", NOT_NEGATIVE),
        "AMP": Key(
            "auto",
            "Precision; auto is bf16 on a GPU with bf16, fp16 on other GPUs, fp32 on a CPU.",
            one_of("auto", "bf16", "fp16", "fp32"),
            spellings={"true": "auto", "false": "fp32"},
        ),
        "OOM_RETRY": Key(True, "Halve micro-batches when memory runs out (on 1 rank)."),
        "GRAD_CLIP": Key(1.0, "Largest norm of the whole gradient; 0: no limit.", NOT_NEGATIVE),
        "FREEZE": Key([""], "Parts of VRT that are never trained.", FREEZABLE),
        "GROUPS": {
            "SPYNET": _part(),
            "DEFORM": _part(),
            "REFINEMENT": _part("everything but FIRST_ESTIMATE; it does not run before"),
        },
        "EMA_DECAY": Key(0.0, "Decay of the averaged weights; 0: no average.", DROPOUT),
        "OPTIM": {
            "NAME": Key("adamw", "Optimiser.", one_of("adamw", "muon")),
            "LR": Key(2e-4, "Peak learning rate.", POSITIVE),
            "BETAS": Key([0.9, 0.99], "AdamW's two decay rates.", BETAS),
            "WEIGHT_DECAY": Key(1e-4, "Weight decay.", NOT_NEGATIVE),
        },
        "SCHED": {
            "WARMUP_STEPS": Key(5000, "Steps of linear warm-up.", NOT_NEGATIVE),
            "ETA_MIN": Key(1e-7, "Learning rate at the end of the cosine.", NOT_NEGATIVE),
        },
        "VAL_EVERY": Key(1000, "Steps between validations.", POSITIVE),
        "VISUAL_EVERY": Key(10000, "Steps between pictures, which a validation writes.", POSITIVE),
        "SAVE_EVERY": Key(500, "Steps between saves of last.pth.", POSITIVE),
        "LOG_EVERY": Key(50, "Steps between lines of the log.", POSITIVE),
        "STALL_MINUTES": Key(
            10.0, "Minutes without progress after which the run ends; 0: off.", NOT_NEGATIVE
        ),
        "DETERMINISTIC": Key(True, "Choose operations that repeat their results exactly."),
        "COMPILE": Key(False, "Compile the MLPs and the spike encoder with torch.compile."),
        "PROFILE_STEPS": Key(0, "Steps of each start to profile; 0: none.", NOT_NEGATIVE),
        "RGB_TWIN": Key(
            False, "launch_train.sh also trains the RGB-only baseline and compares both."
        ),
        "RIVAL_UNET": Key(False, "With RGB_TWIN, also trains a plain U-Net for the same seconds."),
    },
    "VAL": {
        "TILE_FRAMES": Key(12, "Frames per tile; 0: the whole sequence.", NOT_NEGATIVE),
        "TILE_SIZE": Key(256, "Side of a tile in RGB pixels.", TILE_SIZE),
        "OVERLAP_FRAMES": Key(2, "Frames that adjacent tiles share.", NOT_NEGATIVE),
        "OVERLAP_SIZE": Key(24, "Pixels that adjacent tiles share.", OVERLAP),
        "BLEND": Key(
            "smooth",
            "smooth: seamless ramps; reference: the published test procedure.",
            one_of("smooth", "reference"),
        ),
        "LPIPS": Key(True, "Also compute LPIPS, if its weights are there or can be downloaded."),
        "LPIPS_WEIGHTS": Key(
            "", "AlexNet weights; empty: torch's hub cache, or a download.", optional_path=True
        ),
    },
    "LOSS": {
        "CHARBONNIER": {
            "DELTA": Key(1e-3, "Delta of the Charbonnier loss, sqrt(d^2 + DELTA^2).", POSITIVE),
            "WEIGHT": Key(1.0, "Weight of the Charbonnier term.", NOT_NEGATIVE),
        },
        "VGG_PERCEPTUAL": {
            "LAYERS": Key(
                ["relu3_3"],
                "VGG layers that are compared.",
                ("a list of names like relu3_3", lambda v: len(v) > 0),
            ),
            "WEIGHT": Key(0.1, "Weight of the perceptual term; 0 turns it off.", NOT_NEGATIVE),
            "BACKBONE": Key("vgg16", "VGG network.", one_of("vgg16", "vgg19")),
            "CRITERION": Key("l1", "Distance of features.", one_of("l1", "l2")),
            "WEIGHTS": Key(
                "", "Weights file; empty: torch's hub cache, or a download.", optional_path=True
            ),
        },
    },
    "LOG": {
        "TENSORBOARD": Key(True, "Write TensorBoard events beside scalars.csv."),
        "WANDB": Key(False, "Also send scalars to Weights & Biases; needs wandb."),
        "SWANLAB": Key(False, "Also send scalars to SwanLab; needs swanlab."),
        "SAVE_DIR": Key("outputs", "Folder for logs, checkpoints, pictures and metrics."),
    },
}
