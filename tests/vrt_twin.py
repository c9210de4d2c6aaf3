"""VRT in its slow, obvious form: explicit logits, full masks, loops over frames and pairs.

Works with the weights of a VRT of ours and follows the description step by step: every fast path
of third_party/VRT has its counterpart here, written another way.
"""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import deform_conv2d


def sample(image, x, y, mode="bilinear", border="zeros"):
    """Sample `[n, c, h, w]` at pixel positions `[n, h, w]`."""
    height, width = image.shape[-2:]
    grid = torch.stack((2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1), dim=-1)
    return F.grid_sample(image, grid, mode=mode, padding_mode=border, align_corners=True)


def positions(flow):
    height, width = flow.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return x.to(flow) + flow[:, 0], y.to(flow) + flow[:, 1]


def warp(image, flow, border="zeros"):
    return sample(image, *positions(flow), border=border)


def warp_nearest4(image, flow):
    x, y = positions(flow)
    corners = [(a, b) for a in (x.floor(), x.ceil()) for b in (y.floor(), y.ceil())]
    return torch.cat([sample(image, a, b, mode="nearest") for a, b in corners], dim=1)


def spynet(net, ref, supp):
    """Estimate one pair at a time, with a pyramid of its own; finest level first."""
    height, width = ref.shape[-2:]
    full = (-(-height // 32) * 32, -(-width // 32) * 32)
    images = [F.interpolate(x, size=full, mode="bilinear") for x in (ref, supp)]
    images = [[(x - net.mean) / net.std] for x in images]
    for pyramid in images:
        for _ in range(5):
            pyramid.insert(0, F.avg_pool2d(pyramid[0], 2))
    flow = ref.new_zeros(len(ref), 2, full[0] // 32, full[1] // 32)
    flows = []
    for level in range(6):
        if level:
            flow = 2 * F.interpolate(flow, scale_factor=2, mode="bilinear", align_corners=True)
        moved = warp(images[1][level], flow, border="border")
        flow = flow + net.basic_module[level](torch.cat((images[0][level], moved, flow), dim=1))
        step = 2 ** (5 - level)
        if step <= 8:
            small = F.interpolate(flow, size=(height // step, width // step), mode="bilinear")
            ratio = [(width // step) / (full[1] // step), (height // step) / (full[0] // step)]
            flows.insert(0, small * small.new_tensor(ratio).view(1, 2, 1, 1))
    return flows


def all_flows(vrt, clip):
    """Flat lists of flows by distance and scale, pair by pair."""
    frames = clip.unbind(1)
    pairs = list(zip(frames[:-1], frames[1:], strict=True))
    near_back = [spynet(vrt.spynet, a, b) for a, b in pairs]
    near_ahead = [spynet(vrt.spynet, b, a) for a, b in pairs]
    back, ahead, back_all, ahead_all = near_back, near_ahead, [], []
    for g in range(1, vrt.pa_frames // 2 + 1):
        if g > 1:
            times = range(len(frames) - g)
            back = [
                [f + warp(n, f) for f, n in zip(back[t], near_back[t + g - 1], strict=True)]
                for t in times
            ]
            ahead = [
                [f + warp(n, f) for f, n in zip(ahead[t + 1], near_ahead[t], strict=True)]
                for t in times
            ]
        back_all += [torch.stack(level, dim=1) for level in zip(*back, strict=True)]
        ahead_all += [torch.stack(level, dim=1) for level in zip(*ahead, strict=True)]
    return back_all, ahead_all


def full_mask(padded, window, shift):
    """Mask of every window `[windows, N, N]`: 0 or -100, from region labels of the volume."""
    label = torch.zeros(1, *padded, 1)
    count = 0
    slices = [
        [slice(0, -w), slice(-w, -s), slice(-s, None)] if s else [slice(None)]
        for w, s in zip(window, shift, strict=True)
    ]
    for d in slices[0]:
        for h in slices[1]:
            for w in slices[2]:
                label[:, d, h, w] = count
                count += 1
    label = cut(label, window)[:, :, 0]
    return (label[:, None, :] != label[:, :, None]).float() * -100.0


def cut(x, window):
    """`[B, D, H, W, C]` to `[windows, N, C]`."""
    b, d, h, w, c = x.shape
    x = x.view(
        b, d // window[0], window[0], h // window[1], window[1], w // window[2], window[2], c
    )
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, window[0] * window[1] * window[2], c)


def join(windows, window, shape):
    b, d, h, w, c = shape
    grid = (b, d // window[0], h // window[1], w // window[2], *window, c)
    return windows.view(grid).permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(shape)


def split_heads(qkv, heads):
    m, n, c = qkv.shape
    return qkv.view(m, n, 3, heads, c // 3 // heads).permute(2, 0, 3, 1, 4)


def explicit(q, k, v, scale, bias=None, mask=None):
    logits = (q * scale) @ k.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        m, heads, n, _ = logits.shape
        logits = logits.view(-1, len(mask), heads, n, n) + mask[None, :, None]
        logits = logits.view(m, heads, n, n)
    out = logits.softmax(-1) @ v
    return out.transpose(1, 2).flatten(2)


def attention(attn, x, mask):
    """Window attention of `[M, N, C]` with the mask of each window `[windows, N, N]` or None."""
    n = x.shape[1]
    q, k, v = split_heads(attn.qkv_self(x), attn.num_heads)
    index = attn.relative_position_index[:n, :n]
    bias = attn.relative_position_bias_table[index.reshape(-1)].view(n, n, -1).permute(2, 0, 1)
    out = explicit(q, k, v, attn.scale, bias[None], mask)
    if attn.is_mutual:
        coded = x + attn.position_bias.repeat(1, 2, 1)
        q, k, v = split_heads(attn.qkv_mut(coded), attn.num_heads)
        (q1, q2), (k1, k2), (v1, v2) = (t.chunk(2, dim=2) for t in (q, k, v))
        half = None if mask is None else mask[:, : n // 2, : n // 2]
        first = explicit(q2, k1, v1, attn.scale, mask=half)
        second = explicit(q1, k2, v2, attn.scale, mask=half)
        out = torch.cat((torch.cat((first, second), dim=1), out), dim=2)
    return attn.proj(out)


def attention_part(block, x, window, shift):
    """Attention branch of a block on `[B, D, H, W, C]`, without the residual."""
    size = x.shape[1:4]
    shift = [s if n > w else 0 for n, w, s in zip(size, window, shift, strict=True)]
    window = [min(n, w) for n, w in zip(size, window, strict=True)]
    d, h, w = (-n % w for n, w in zip(size, window, strict=True))
    x = F.pad(block.norm1(x), (0, 0, 0, w, 0, h, 0, d))
    shape = x.shape
    mask = None
    if any(shift):
        x = torch.roll(x, [-s for s in shift], (1, 2, 3))
        mask = full_mask(shape[1:4], window, shift).to(x)
    x = join(attention(block.attn, cut(x, window), mask), window, shape)
    x = torch.roll(x, shift, (1, 2, 3))
    return x[:, : size[0], : size[1], : size[2]]


def mlp(part, x):
    return part.fc2(F.gelu(part.fc11(x)) * part.fc12(x))


def group(module, x, recompute=False):
    """Blocks on `[B, C, D, H, W]`."""
    run = (
        (lambda f, *a: checkpoint(f, *a, use_reentrant=False)) if recompute else lambda f, *a: f(*a)
    )
    x = x.permute(0, 2, 3, 4, 1).contiguous()
    for i, block in enumerate(module.blocks):
        shift = [side // 2 if i % 2 else 0 for side in module.window]
        x = x + run(attention_part, block, x, module.window, shift)
        x = x + run(lambda y, b=block: mlp(b.mlp, b.norm2(y)), x)
    return x.permute(0, 4, 1, 2, 3).contiguous()


def on_channels(layer, x):
    return layer(x.transpose(1, -1)).transpose(1, -1)


def reshape(module, x, change):
    """Pixels to channels or back, one offset at a time; then the layers."""
    if change == "down":
        parts = [x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)]
        x = torch.cat(parts, dim=1)
    elif change == "up":
        parts = x.chunk(4, dim=1)
        fine = x.new_zeros(*parts[0].shape[:3], 2 * x.shape[3], 2 * x.shape[4])
        for n, part in enumerate(parts):
            fine[..., n % 2 :: 2, n // 2 :: 2] = part
        x = fine
    return on_channels(lambda y: module[2](module[1](y)) if len(module) > 2 else module[1](y), x)


def deform(module, current, neighbours, flows):
    """One call of the deformable convolution for one target frame."""
    warped = [warp(x, f) for x, f in zip(neighbours, flows, strict=True)]
    count = 18 * module.deformable_groups
    predicted = module.conv_offset(torch.cat((*warped, current, *flows), dim=1))
    offsets = list((module.max_residue * torch.tanh(predicted[:, :count])).chunk(len(flows), 1))
    for e, flow in enumerate(flows):
        offsets[e] = offsets[e] + flow.flip(1).repeat(1, offsets[e].shape[1] // 2, 1, 1)
    return deform_conv2d(
        torch.cat(neighbours, dim=1),
        torch.cat(offsets, dim=1),
        module.weight,
        module.bias,
        padding=1,
        mask=torch.sigmoid(predicted[:, count:]),
    )


def align_to_next(module, x, flows):
    """Align to each frame of `[B, T, C, H, W]` its successors, frame by frame; last frame 0."""
    num_frames = x.shape[1]
    out = []
    for t in range(num_frames - 1):
        neighbours, by = [], []
        for g, flow in enumerate(flows, start=1):
            is_there = t + g < num_frames
            neighbours.append(x[:, t + g] if is_there else torch.zeros_like(x[:, 0]))
            by.append(flow[:, t] if is_there else torch.zeros_like(flow[:, 0]))
        out.append(deform(module, x[:, t], neighbours, by))
    return torch.stack([*out, torch.zeros_like(x[:, 0])], dim=1)


def align_to_previous(module, x, flows):
    """Reverse time, align to the successors, reverse back."""
    return align_to_next(module, x.flip(1), [flow.flip(1) for flow in flows]).flip(1)


def stage(module, x, change, backward, forward, recompute=False):
    """One of stages 1 to 7 on `[B, C, T, H, W]`."""
    x = reshape(module.reshape, x, change)
    x = on_channels(module.linear1, group(module.residual_group1, x, recompute)) + x
    x = on_channels(module.linear2, group(module.residual_group2, x, recompute)) + x
    if not module.num_neighbours:
        return x
    frames = x.transpose(1, 2)
    used = module.num_neighbours
    after = align_to_next(module.pa_deform, frames, backward[:used])
    before = align_to_previous(module.pa_deform, frames, forward[:used])
    joined = torch.cat((frames, after, before), dim=2).transpose(1, 2)
    return on_channels(lambda y: mlp(module.pa_fuse, y), joined)


def restore(vrt, clip, recompute=False):
    """The whole network for `upscale` 1 and `pa_frames` > 0, sizes that need no padding."""
    backward, forward = all_flows(vrt, clip)
    num_frames = clip.shape[1]
    images = []
    for t in range(num_frames):
        nothing = clip.new_zeros(len(clip), 4 * clip.shape[2], *clip.shape[3:])
        last = t == num_frames - 1
        after = nothing if last else warp_nearest4(clip[:, t + 1], backward[0][:, t])
        before = warp_nearest4(clip[:, t - 1], forward[0][:, t - 1]) if t else nothing
        images.append(torch.cat((clip[:, t], after, before), dim=1))
    first = conv3d(vrt.conv_first, torch.stack(images, dim=2))
    x = features(vrt, first, backward, forward, recompute)
    x = first + on_channels(vrt.conv_after_body, x)
    return conv3d(vrt.conv_last, x).transpose(1, 2) + clip


def conv3d(layer, x):
    return F.conv3d(x, layer.weight, layer.bias, padding=(0, 1, 1))


def features(vrt, x, backward, forward, recompute=False):
    """Stages 1 to 8 and the last norm."""
    skips = []
    for i, k in enumerate((0, 1, 2, 3, 2, 1, 0)):
        change = "same" if i == 0 else "down" if i < 4 else "up"
        if i > 4:
            x = x + skips[7 - i]
        module = getattr(vrt, f"stage{i + 1}")
        x = stage(module, x, change, backward[k::4], forward[k::4], recompute)
        skips.append(x)
    x = x + skips[0]
    x = on_channels(lambda y: vrt.stage8[0][2](vrt.stage8[0][1](y)), x)
    for layer in vrt.stage8[1:]:
        x = x + on_channels(layer.linear, group(layer.residual_group, x, recompute))
    return on_channels(vrt.norm, x)
