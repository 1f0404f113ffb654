#!/usr/bin/env python3
"""CLIP at full size against transformers: the same answers, and the time of PromptSRC's step.

    python3 benches/peers/clip.py check [--program target/release/lotep] [--example FILE]
    python3 benches/peers/clip.py speed [--batches 4,32] [--classes 50,100,1000] [--rounds 3] [--alone] [--output FILE] [--program …]

Run with a Python that has torch, transformers, numpy, safetensors and pillow (see full_size.py).

`check` makes a ViT-B/16 CLIP of random weights in transformers, saves it with a small vocabulary of letters, and compares
the logits of `lotep predict --classes` in f32 with transformers' in float64, and its tokenizer's numbers with ours through
them: max|difference| / max|reference| below 1e-5 is agreement, exit status 1 else. The same for weights under open_clip's names.
Then PromptSRC's first step on the same images from the same prompts, with all its losses: each term (1e-5) and the gradient of
every prompt (5e-5) of the example `clip_step` in f32 against PyTorch's in float64.

`speed` times a training step of PromptSRC (4 words and 4 tokens in 9 blocks of both towers, the frozen image tower on the
same images, all its losses; the frozen text features are computed once on both sides). In PyTorch in f32, bfloat16 autocast
and with the model in bfloat16, with sentences of 77 tokens, as the published code has them, and of 16, which is enough.
Rounds interleave; a figure is the median of the steps of its process, a ratio the median over rounds of the best peer's
time over lotep's in the same round.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from full_size import REPOSITORY, example as built_here

DEPTH, COUNT = 9, 4
PEERS = [(dtype, length) for dtype in ("f32", "autocast", "bf16") for length in (77, 16)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["check", "speed"])
    parser.add_argument("--program", type=Path, default=REPOSITORY / "target" / "release" / "lotep")
    parser.add_argument("--example", type=Path, help="the example clip_step, built already")
    parser.add_argument("--batches", default="4,32")
    parser.add_argument("--classes", default="50")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="speed: lotep only, say for the cost of more classes")
    parser.add_argument("--output", type=Path, help="speed: write every figure as JSON")
    parser.add_argument("--peer", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        dtype, length, batch, classes, steps = args.peer
        return print(json.dumps(peer(dtype, int(length), int(batch), int(classes), int(steps))))
    return check(args.program, args.example) if args.what == "check" else speed(args)


def small_vocabulary(folder):
    """Letters, digits and stops, alone and as ends of words; the numbers of start and end are CLIP's."""
    signs = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    tokens = {token: number for number, token in enumerate(signs + [s + "</w>" for s in signs] + ["ca", "cat</w>", "do", "dog</w>"])}
    tokens.update({"<|startoftext|>": 49406, "<|endoftext|>": 49407})
    (folder / "vocab.json").write_text(json.dumps(tokens))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\nd o\ndo g</w>\n")


def openai_names(state):
    """transformers' names to OpenAI's, which open_clip has too."""
    import torch

    out = {}
    for ours, theirs in [("visual.transformer.resblocks", "vision_model.encoder.layers"),
                         ("transformer.resblocks", "text_model.encoder.layers")]:
        for i in range(12):
            a, b = f"{ours}.{i}", f"{theirs}.{i}"
            for leaf in ("weight", "bias"):
                parts = [state[f"{b}.self_attn.{p}_proj.{leaf}"] for p in "qkv"]
                out[f"{a}.attn.in_proj_{leaf}"] = torch.cat(parts)
                for x, y in [("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("attn.out_proj", "self_attn.out_proj"),
                             ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")]:
                    out[f"{a}.{x}.{leaf}"] = state[f"{b}.{y}.{leaf}"]
    for leaf in ("weight", "bias"):
        out[f"visual.ln_pre.{leaf}"] = state[f"vision_model.pre_layrnorm.{leaf}"]
        out[f"visual.ln_post.{leaf}"] = state[f"vision_model.post_layernorm.{leaf}"]
        out[f"ln_final.{leaf}"] = state[f"text_model.final_layer_norm.{leaf}"]
    out["visual.conv1.weight"] = state["vision_model.embeddings.patch_embedding.weight"]
    out["visual.class_embedding"] = state["vision_model.embeddings.class_embedding"]
    out["visual.positional_embedding"] = state["vision_model.embeddings.position_embedding.weight"]
    out["visual.proj"] = state["visual_projection.weight"].T.contiguous()
    out["text_projection"] = state["text_projection.weight"].T.contiguous()
    out["token_embedding.weight"] = state["text_model.embeddings.token_embedding.weight"]
    out["positional_embedding"] = state["text_model.embeddings.position_embedding.weight"]
    out["logit_scale"] = state["logit_scale"]
    return out


OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 512, "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
    },
}


def built(seed=1):
    """CLIP ViT-B/16 with weights of a size at which every part tells."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    config = CLIPConfig(vision_config={"patch_size": 16}, text_config={"eos_token_id": 49407, "bos_token_id": 49406})
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.normal_(std=0.02 if "position" in name else p[0].numel() ** -0.5)
            elif p.ndim == 1 and "norm" not in name:
                p.normal_(std=0.02)
    return model


def says(model, ids, ends, words):
    """Features of texts, `words` in the first blocks in the place of those behind the start; with words, of length one."""
    import torch
    import torch.nn.functional as F

    text = model.text_model
    length = ids.shape[1]
    x = text.embeddings.token_embedding(ids)
    mask = torch.full((length, length), float("-inf"), dtype=x.dtype).triu(1)[None, None]
    for i, layer in enumerate(text.encoder.layers):
        if i < len(words):
            x = torch.cat([x[:, :1], words[i].expand(len(ids), -1, -1), x[:, 1 + words[i].shape[1]:]], 1)
        if i == 0:
            x = x + text.embeddings.position_embedding.weight[:length]
        x = layer(x, attention_mask=mask)
        x = x[0] if isinstance(x, tuple) else x
    x = text.final_layer_norm(x[torch.arange(len(ids)), ends])
    return F.normalize(model.text_projection(x), dim=-1) if words else model.text_projection(x)


def sees(model, images, tokens):
    """Features of images, of length one, `tokens` at the end of the sequence in the first blocks."""
    import torch
    import torch.nn.functional as F

    vision = model.vision_model
    x = vision.embeddings(images)
    if tokens:
        x = torch.cat([x, tokens[0].expand(len(x), -1, -1)], 1)
    x = vision.pre_layrnorm(x)
    for i, layer in enumerate(vision.encoder.layers):
        if 0 < i < len(tokens):
            x = torch.cat([x[:, :-tokens[i].shape[1]], tokens[i].expand(len(x), -1, -1)], 1)
        x = layer(x, attention_mask=None)
        x = x[0] if isinstance(x, tuple) else x
    return F.normalize(model.visual_projection(vision.post_layernorm(x[:, 0])), dim=-1)


def terms(scale, t, i, z, s, labels):
    """PromptSRC's loss: of texts and images as prompted (t, i) and as they were (z, s), all of length one."""
    import torch.nn.functional as F

    logits, own = scale * i @ t.T, scale * s @ z.T
    divergence = F.kl_div(F.log_softmax(logits, 1), F.log_softmax(own, 1), reduction="sum", log_target=True)
    return {
        "entropy": F.cross_entropy(logits, labels), "text": 25 * F.l1_loss(t, z), "image": 10 * F.l1_loss(i, s),
        "logits": divergence / logits.numel(),
    }


def check_step(example, folder, model, tokenizer, names, pixels, normalised):
    """PromptSRC's first step, its terms and the gradient of everything that it learns: ours in f32, PyTorch's in float64."""
    import torch
    import torch.nn.functional as F
    from safetensors import safe_open
    from safetensors.torch import save_file

    torch.manual_seed(2)
    labels = torch.arange(len(pixels)) * 3 % len(names)
    learnt = {f"text.{i}.words": 0.04 * torch.randn(COUNT, 512) for i in range(DEPTH)}
    learnt |= {f"image.{i}.tokens": 0.04 * torch.randn(COUNT, 768) for i in range(DEPTH)}
    step = {"names": names, "method": {"method": "promptsrc", "depth": DEPTH, "tokens": COUNT}}
    given = {"pixels": pixels.float().contiguous(), "labels": labels.float(), **learnt}
    save_file(given, folder / "step.safetensors", {"step": json.dumps(step)})
    subprocess.run([example, folder / "hf", folder / "step.safetensors", folder / "gradients.safetensors"], check=True,
                   env=os.environ | {"LOTEP_TEXT_CACHE": str(folder / "texts")})
    with safe_open(folder / "gradients.safetensors", "pt") as file:
        sentences = json.loads(file.metadata()["sentences"])
        ours = {name: file.get_tensor(name).double() for name in file.keys()}

    def read(template, words):
        ids = tokenizer([template.format(name) for name in names], padding=True, return_tensors="pt").input_ids
        return says(model, ids, (ids == 49407).int().argmax(1), words)

    leaves = {name: value.double().requires_grad_() for name, value in learnt.items()}
    words = [leaves[f"text.{i}.words"][None] for i in range(DEPTH)]
    tokens = [leaves[f"image.{i}.tokens"][None] for i in range(DEPTH)]
    with torch.no_grad():
        z = F.normalize(torch.stack([read(sentence, []) for sentence in sentences]).mean(0), dim=-1)
        s = sees(model, normalised, [])
    model.requires_grad_(False)
    parts = terms(model.logit_scale.exp(), read("a photo of a {}.", words), sees(model, normalised, tokens), z, s, labels)
    loss = sum(parts.values())
    loss.backward()
    worst = 0.0
    for name, value in [*parts.items(), ("all", loss)]:
        found = ours["loss" if name == "all" else f"loss.{name}"].item()
        error = abs(found - value.item()) / abs(value.item())
        print(f"| PromptSRC's loss, {name} | f32 | {error:.1e} | {value.item():.4f} |")
        worst = max(worst, error / 1e-5)
    for tower in ("text", "image"):
        errors = {name: ((ours[f"grad.{name}"] - leaf.grad).abs().max() / leaf.grad.abs().max()).item()
                  for name, leaf in leaves.items() if name.startswith(tower)}
        name = max(errors, key=errors.get)
        print(f"| PromptSRC's gradients, {tower} | f32 | {errors[name]:.1e} | worst of {len(errors)}: {name} |")
        worst = max(worst, errors[name] / 5e-5)
    return worst


def check(program, example):
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import load_file, save_file
    from transformers import CLIPTokenizer

    # First: what does not build should say so before minutes of work.
    example = example or built_here("clip_step")
    names = ["cat", "dog", "red fox 42", "it's odd", "a very long name of a thing that is nowhere seen"]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model = built()
        model.save_pretrained(folder / "hf")
        small_vocabulary(folder / "hf")
        (folder / "open").mkdir()
        small_vocabulary(folder / "open")
        (folder / "open" / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
        save_file(openai_names(model.state_dict()), folder / "open" / "open_clip_model.safetensors")
        rng = np.random.default_rng(0)
        images = []
        for i in range(3):
            # Smooth, so that images differ by more than noise; of the input's size, so that nothing is resized.
            small = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
            images.append(Image.fromarray(small).resize((224, 224)))
            images[-1].save(folder / f"{i}.png")
        tokenizer = CLIPTokenizer(str(folder / "hf" / "vocab.json"), str(folder / "hf" / "merges.txt"))
        texts = tokenizer([f"a photo of a {name}." for name in names], padding=True, return_tensors="pt")
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        x = torch.tensor(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).double() / 255
        x = (x - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(std).double().view(3, 1, 1)
        with torch.no_grad():
            expected = model.double()(input_ids=texts.input_ids, pixel_values=x,
                                      attention_mask=texts.attention_mask).logits_per_image.numpy()
        worst = 0.0
        for layout in ("hf", "open"):
            for precision, limit in (("f32", 1e-5), ("bf16", 3e-2)):
                out = folder / "logits.safetensors"
                subprocess.run([program, "predict", "--backbone", folder / layout, "--classes", ",".join(names), "--precision",
                                precision, "--logits", out, "--quiet", *(folder / f"{i}.png" for i in range(3))],
                               check=True, stdout=subprocess.DEVNULL)
                found = load_file(out)["logits"].double().numpy()
                error = np.abs(found - expected).max() / np.abs(expected).max()
                spread = expected.std() / np.abs(expected).max()
                print(f"| clip vit_base_patch16, {layout} names | {precision} | {error:.1e} | spread {spread:.2f} |")
                worst = max(worst, error / limit)
        pixels = torch.tensor(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2).double() / 255
        worst = max(worst, check_step(example, folder, model, tokenizer, names, pixels, x))
    sys.exit(0 if worst <= 1 else 1)


def peer(dtype, length, batch, classes, steps):
    """Milliseconds of PromptSRC's step in PyTorch, and peak memory."""
    import resource
    import torch
    import torch.nn.functional as F

    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    model = built().to(kind)
    model.requires_grad_(False)
    learn = lambda *shape: (0.02 * torch.randn(shape, dtype=kind)).requires_grad_()
    words = [learn(1, COUNT, 512) for _ in range(DEPTH)]
    tokens = [learn(1, COUNT, 768) for _ in range(DEPTH)]
    ids = torch.randint(1, 40000, (classes, length))
    ends = torch.full((classes,), min(9, length - 1))
    images = torch.rand(batch, 3, 224, 224, dtype=kind)
    labels = torch.arange(batch) % classes
    fixed = F.normalize(torch.randn(classes, 512, dtype=kind), dim=-1)
    optimizer = torch.optim.SGD(words + tokens, lr=1e-4, momentum=0.9)

    def step():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
            with torch.no_grad():
                s = sees(model, images, [])
            loss = sum(terms(100, says(model, ids, ends, words), sees(model, images, tokens), fixed, s, labels).values())
        loss.backward()
        optimizer.step()

    times = []
    for n in range(steps + 2):
        start = time.perf_counter()
        step()
        if n >= 2:
            times.append(1000 * (time.perf_counter() - start))
    return {"ms": statistics.median(times), "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def ours(program, batch, classes, steps):
    command = [program, "bench", "train", "--backbone", "vit_base_patch16_clip_quickgelu_224", "--random-weights", "--method",
               "promptsrc", "--batch-size", str(batch), "--classes", str(classes), "--steps", str(steps), "--format", "json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return {"ms": report["step_ms"], "mb": report["peak_rss_mb"]}


def speed(args):
    peers = [] if args.alone else PEERS
    print("| batch | classes | lotep ms | lotep MB | peer | its ms | its MB | speed ratio | memory ratio |")
    print("|--:|--:|--:|--:|---|--:|--:|--:|--:|", flush=True)
    records = []
    for classes in map(int, args.classes.split(",")):
        for batch in map(int, args.batches.split(",")):
            rounds = []
            for _ in range(args.rounds):
                row = {"lotep": ours(args.program, batch, classes, args.steps)}
                for dtype, length in peers:
                    command = [sys.executable, __file__, "speed", "--peer", dtype, str(length), str(batch), str(classes), str(args.steps)]
                    run = subprocess.run(command, check=True, capture_output=True, text=True)
                    row[f"{dtype}, {length} tokens"] = json.loads(run.stdout.splitlines()[-1])
                rounds.append(row)
            records.append({"batch": batch, "classes": classes, "rounds": rounds})
            if args.output:
                args.output.write_text(json.dumps(records, indent=1))
            median = lambda name, key: statistics.median(r[name][key] for r in rounds)
            own = [batch, classes, f"{median('lotep', 'ms'):.0f}", f"{median('lotep', 'mb'):.0f}"]
            if not peers:
                print("| " + " | ".join(map(str, [*own, "", "", "", "", ""])) + " |", flush=True)
            for name in rounds[0]:
                if name != "lotep":
                    ratio = lambda key: statistics.median(r[name][key] / r["lotep"][key] for r in rounds)
                    cells = [*own, name, f"{median(name, 'ms'):.0f}", f"{median(name, 'mb'):.0f}", f"{ratio('ms'):.2f}",
                             f"{ratio('mb'):.2f}"]
                    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
