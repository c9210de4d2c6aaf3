"""Compare exact forms of attention over a few frames, for very many pixels, on this machine.

    python benchmarks/temporal_attention.py [--pixels 8192] [--frames 5] [--channels 96]
                                            [--rounds 7] [--threads 1] [--device cpu]

All forms have the same parameters. They run in turn (A B C A B C ...); printed are the medians of
CPU time (on CUDA: time between synchronisations), forward and forward + backward, and the speed
relative to nn.MultiheadAttention. `linear layers alone` is the bound that no form can pass.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from src.utils.attention import TemporalAttention

HEADS = 4
PACKED_PIXELS = 8


def split_heads(x: torch.Tensor, module: TemporalAttention) -> torch.Tensor:
    """Project tokens [P, T, C] to query, key and value, [3, P, heads, T, d]."""
    flat = F.linear(x, module.in_proj_weight, module.in_proj_bias)
    return rearrange(flat, "p t (n heads d) -> n p heads t d", n=3, heads=HEADS)


def join_heads(x: torch.Tensor, module: TemporalAttention) -> torch.Tensor:
    """Join heads [P, heads, T, d] and project, [P, T, C]."""
    return module.out_proj(rearrange(x, "p heads t d -> p t (heads d)"))


def explicit_softmax(x: torch.Tensor, module: TemporalAttention) -> torch.Tensor:
    """Batched matrix products and a softmax, written out."""
    query, key, value = split_heads(x, module)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return join_heads(scores.softmax(-1) @ value, module)


def fused_kernel(x: torch.Tensor, module: TemporalAttention) -> torch.Tensor:
    """One call of scaled_dot_product_attention on (pixels, heads, T, d)."""
    return module._fused_kernel(x.transpose(0, 1)[None], x.transpose(0, 1)[None])[0].transpose(0, 1)


def packed_pixels(x: torch.Tensor, module: TemporalAttention) -> torch.Tensor:
    """Several pixels in one longer sequence, kept apart by a block-diagonal mask."""
    frames = x.shape[1]
    block = torch.arange(PACKED_PIXELS * frames, device=x.device) // frames
    attend_mask = torch.zeros(len(block), len(block), device=x.device)
    attend_mask.masked_fill_(block[:, None] != block[None], float("-inf"))
    packed = rearrange(x, "(p n) t c -> p (n t) c", n=PACKED_PIXELS)
    attended = F.scaled_dot_product_attention(*split_heads(packed, module), attn_mask=attend_mask)
    return rearrange(join_heads(attended, module), "p (n t) c -> (p n) t c", n=PACKED_PIXELS)


def pixels_last(x: torch.Tensor, module: TemporalAttention) -> torch.Tensor:
    """Vector products with pixels in the last axis: what the model uses on a CPU."""
    tokens = x.transpose(0, 1)[None]
    return module._pixels_last(tokens, tokens)[0].transpose(0, 1)


def linear_layers_alone(x: torch.Tensor, module: TemporalAttention) -> torch.Tensor:
    """Only the projections; not attention."""
    flat = F.linear(x, module.in_proj_weight, module.in_proj_bias)
    return module.out_proj(flat[..., : x.shape[-1]])


def multihead_attention(module: TemporalAttention) -> Callable:
    """nn.MultiheadAttention as it is, with the parameters of `module`."""
    channels = module.out_proj.in_features
    mha = nn.MultiheadAttention(channels, HEADS, batch_first=True).to(module.in_proj_weight.device)
    mha.load_state_dict(module.state_dict())
    return lambda x, _: mha(x, x, x, need_weights=False)[0]


def measure(function: Callable, device: str) -> float:
    """Return the seconds that a call takes: of the processor on a CPU, of the clock on CUDA."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    start = clock()
    function()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    """Check that the forms agree, time them in turn, print the medians."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    module = TemporalAttention(options.channels, HEADS).to(options.device)
    tokens = torch.randn(options.frames, options.pixels, options.channels, device=options.device)
    leaf = tokens.requires_grad_()  # frames outermost, as in a feature map
    forms: dict[str, Callable] = {
        "nn.MultiheadAttention": multihead_attention(module),
        "explicit softmax": explicit_softmax,
        "fused kernel": fused_kernel,
        "packed pixels": packed_pixels,
        "pixels last": pixels_last,
        "linear layers alone": linear_layers_alone,
    }
    want = forms["nn.MultiheadAttention"](leaf.transpose(0, 1), module)
    for name, form in list(forms.items())[:-1]:
        torch.testing.assert_close(
            form(leaf.transpose(0, 1), module), want, rtol=1e-4, atol=1e-5, msg=name
        )
    forward: dict[str, list[float]] = {name: [] for name in forms}
    both: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(options.rounds):
        for name, form in forms.items():

            def run(form: Callable = form) -> torch.Tensor:
                return form(leaf.transpose(0, 1), module)

            with torch.no_grad():
                forward[name].append(measure(run, options.device))
            both[name].append(measure(lambda run=run: run().sum().backward(), options.device))
    report(forward, both)


def report(forward: dict[str, list[float]], both: dict[str, list[float]]) -> None:
    """Print one line per form."""
    base = [statistics.median(times["nn.MultiheadAttention"]) for times in (forward, both)]
    print(f"{'form':24s}{'forward ms':>12s}{'speed':>8s}{'fwd + bwd ms':>14s}{'speed':>8s}")
    for name in forward:
        a, b = statistics.median(forward[name]), statistics.median(both[name])
        print(f"{name:24s}{a * 1e3:12.2f}{base[0] / a:8.2f}{b * 1e3:14.2f}{base[1] / b:8.2f}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare forms of attention over a few frames.")
    parser.add_argument("--pixels", type=int, default=8192, help=f"multiple of {PACKED_PIXELS}")
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--channels", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
