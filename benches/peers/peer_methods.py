"""Methods in PyTorch, on timm's networks, as people write them: what `speed.py` compares steps with."""
import torch
import torch.nn.functional as F

TOKENS, KEYS, RANK = 10, 5, 8


def adapted(model, method, size, dtype):
    """What to call on images, and what learns, beside the classifier, which is left out on both sides but for its
    forward pass; with every weight it is one of them."""
    if method == "full":
        model.train().requires_grad_(True)
        return model, list(model.parameters())
    if method == "lor-vp":
        prompt = torch.zeros(1, 3, size, size, dtype=dtype, requires_grad=True)
        return (lambda x: model(x + prompt)), [prompt]
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        wrapped = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["qkv"])).to(dtype)
        return wrapped, [p for p in wrapped.parameters() if p.requires_grad]
    blocks, width = model.blocks, model.embed_dim
    learn = lambda *shape: (torch.rand(shape, dtype=dtype) * 0.1).requires_grad_()
    tokens = [learn(1, TOKENS, width) for _ in blocks]
    keys = []
    if method == "e2vpt":
        for block in blocks:
            attention = block.attn
            keys.append(learn(1, attention.num_heads, KEYS, attention.head_dim))
            attention.forward = with_keys(attention, keys[-1])

    def forward(images):
        x = model._pos_embed(model.patch_embed(images))
        for number, (block, own) in enumerate(zip(blocks, tokens)):
            patches = x[:, 1 if number == 0 else 1 + TOKENS:]
            x = block(torch.cat([x[:, :1], own.expand(len(x), -1, -1), patches], dim=1))
        return model.forward_head(model.norm(x))

    return forward, tokens + keys


def with_keys(attention, own):
    """Attention with keys, which are values too, before the tokens' own."""

    def forward(x, *args, **kwargs):
        b, n, c = x.shape
        qkv = attention.qkv(x).reshape(b, n, 3, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        more = own.to(k.dtype).expand(b, -1, -1, -1)
        x = F.scaled_dot_product_attention(q, torch.cat([more, k], 2), torch.cat([more, v], 2))
        return attention.proj(x.transpose(1, 2).reshape(b, n, c))

    return forward
