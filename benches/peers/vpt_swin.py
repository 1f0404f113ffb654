"""VPT on a small Swin, from its definition, in PyTorch and timm with float64: the numbers that the test
`method::vpt::tests::tokens_in_windows_agree_with_pytorch` has.

    python benches/peers/vpt_swin.py

Weights, tokens and the image follow from a formula, so that nothing has to be stored. timm's blocks are used as they
are but for their attention, which is written out here: prompts stand before the tokens of every window with neither
bias nor mask, what the windows make of a prompt is averaged, a merge sees a prompt as four equal neighbours.
"""
import math

import timm.models.swin_transformer as swin
import torch

WIDTH, TOKENS, IMAGE, WINDOW = 8, 2, 24, 3


def formula(name, shape, scale):
    """Values of order `scale`, other ones for every name."""
    begin = sum(name.encode()) % 97
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return (torch.sin((i * 7 + begin * 13) * 0.37) * scale).reshape(shape)


def network():
    net = swin.SwinTransformer(img_size=IMAGE, patch_size=4, embed_dim=WIDTH, depths=(2, 2), num_heads=(2, 4),
                               window_size=WINDOW, num_classes=0, drop_path_rate=0.0).double().eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(False)
            value = formula(name, parameter.shape, 0.1 if parameter.dim() == 1 else 0.4)
            scales = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(value + 1 if scales else value)
    return net


def block_forward(block, x, prompts):
    """A block with prompts [B, n, C] beside its map [B, H, W, C]."""
    b, h, w, c = x.shape
    n = prompts.shape[1]
    both = torch.cat([prompts, x.reshape(b, h * w, c)], 1)
    normed = block.norm1(both)
    own, tokens = normed[:, :n], normed[:, n:].reshape(b, h, w, c)
    shift = block.shift_size
    rolled = torch.roll(tokens, (-shift[0], -shift[1]), (1, 2)) if any(shift) else tokens
    windows = swin.window_partition(rolled, block.window_size).reshape(b, -1, block.window_area, c)
    count, area = windows.shape[1], block.window_area
    windows = torch.cat([own[:, None].expand(b, count, n, c), windows], 2)
    attn = block.attn
    heads = attn.num_heads
    q, k, v = attn.qkv(windows).reshape(b, count, n + area, 3, heads, -1).permute(3, 0, 1, 4, 2, 5)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    added = torch.zeros(count, heads, n + area, n + area, dtype=x.dtype)
    added[:, :, n:, n:] += attn._get_rel_pos_bias()[0]
    if block.attn_mask is not None:
        added[:, :, n:, n:] += block.attn_mask[:, None]
    out = ((scores + added).softmax(-1) @ v).transpose(2, 3).reshape(b, count, n + area, c)
    own = out[:, :, :n].mean(1)
    tokens = swin.window_reverse(out[:, :, n:].reshape(-1, *block.window_size, c), block.window_size, h, w)
    tokens = torch.roll(tokens, tuple(shift), (1, 2)) if any(shift) else tokens
    both = both + attn.proj(torch.cat([own, tokens.reshape(b, h * w, c)], 1))
    both = both + block.mlp(block.norm2(both))
    return both[:, n:].reshape(b, h, w, c), both[:, :n]


def merged(merge, prompts):
    four = torch.cat([prompts] * 4, -1)
    return merge.reduction(merge.norm(four))


def features(net, image, tokens):
    b = image.shape[0]
    x, prompts, l = net.patch_embed(image), None, 0
    for stage in net.layers:
        if not isinstance(stage.downsample, torch.nn.Identity):
            x = stage.downsample(x)
            prompts = merged(stage.downsample, prompts)
        for block in stage.blocks:
            if l < len(tokens):
                prompts = tokens[l][None].expand(b, -1, -1)
            x, prompts = block_forward(block, x, prompts)
            l += 1
    return net.norm(x).mean((1, 2))


def main():
    net = network()
    image = formula("image", (2, 3, IMAGE, IMAGE), 1.0)
    for name, depth in [("shallow", 1), ("deep", 4)]:
        widths = [WIDTH, WIDTH, 2 * WIDTH, 2 * WIDTH][:depth]
        tokens = [formula(f"tokens {l}", (TOKENS, c), 1.0).requires_grad_() for l, c in enumerate(widths)]
        found = features(net, image, tokens)
        weigh = torch.cos(torch.arange(found.numel(), dtype=torch.float64)).reshape(found.shape)
        (found * weigh).sum().backward()
        print(name, "features of the second image:", [f"{v:.7e}" for v in found[1].tolist()])
        print(name, "gradients of the first token:", [[f"{v:.7e}" for v in t.grad[0, :4].tolist()] for t in tokens])


if __name__ == "__main__":
    main()
