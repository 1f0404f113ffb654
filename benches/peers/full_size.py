#!/usr/bin/env python3
"""Compare every architecture with timm at full size: logits, loss and gradients.

    python3 benches/peers/full_size.py [--shared ../shared] [--venv target/peers-venv] [--only resnet18,resnet50] [--example FILE]

For each architecture, timm builds the network with seeded random weights and computes logits, the loss and the
gradients of the image and of a zero prompt at every block's entrance, in float64 (the script that makes the test
fixtures, `make_fixtures.py` in SHARED/tools, does that). The example `full_size` of the crate `lotep` then loads the
same file in f32 and prints a row of the table: max|difference| / max|reference|. The exit status is 1 if a row fails.

PyTorch, timm and what they need are installed from PyPI into a virtual environment of their own, once. Each file is
deleted after its row; the largest has 440 MB.
"""
import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ["torch", "timm", "safetensors", "numpy", "pillow"]
# timm's names, and classes; height and width of the image where they are not those of the weights.
ARCHITECTURES = [
    ("resnet18", 1000),
    ("resnet34", 1000),
    ("resnet50", 1000),
    ("resnet101", 1000),
    ("resnet50", 11221),
    ("vit_tiny_patch16_224", 1000),
    ("vit_small_patch16_224", 1000),
    ("vit_base_patch16_224", 1000),
    ("vit_small_patch32_224", 1000),
    ("vit_base_patch32_224", 1000),
    ("vit_base_patch16_224_miil", 11221),
    ("vit_base_patch16_clip_quickgelu_224", 512),
    ("convnext_base", 21841),
    ("swin_base_patch4_window7_224", 21841),
    ("coatnet_2_rw_224", 11821),
    ("coatnet_3_rw_224", 1000),
    ("coatnet_pico_rw_224", 1000),
    ("coatnet_nano_rw_224", 1000),
    ("coatnet_nano_cc_224", 1000),
    ("coatnet_0_rw_224", 1000),
    ("coatnet_bn_0_rw_224", 1000),
    ("coatnet_1_rw_224", 1000),
    ("coatnet_rmlp_nano_rw_224", 1000),
    ("coatnet_rmlp_1_rw2_224", 1000),
    ("coatnet_rmlp_2_rw_224", 1000),
    ("resnet50", 1000, 192, 320),
    ("convnext_tiny", 21841, 192, 320),
    ("vit_tiny_patch16_224", 1000, 160, 320),
    ("swin_tiny_patch4_window7_224", 1000, 160, 320),
    ("coatnet_2_rw_224", 1000, 160, 320),
    ("coatnet_rmlp_1_rw2_224", 1000, 160, 320),
    # Its shortcuts take maxima of so many windows at its own size that some are always nearly tied (`clear_of_ties`).
    ("coatnet_rmlp_1_rw_224", 1000, 64, 96),
]
SEED, BATCH = 1, 2
HEADER = ["architecture", "classes", "image", "logits", "loss", "input gradient", "worst prompt gradient", "agrees"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=REPOSITORY.parent / "shared", help="default: ../shared")
    parser.add_argument("--venv", type=Path, default=REPOSITORY / "target" / "peers-venv",
                        help="virtual environment, made if absent (default: target/peers-venv)")
    parser.add_argument("--only", metavar="NAMES", help="some of the architectures, with commas between")
    parser.add_argument("--example", type=Path, help="the example full_size, built already")
    parser.add_argument("--write", nargs=5, metavar=("NAME", "CLASSES", "HEIGHT", "WIDTH", "FILE"),
                        help=argparse.SUPPRESS)
    args = parser.parse_args()
    script = args.shared.resolve() / "tools" / "make_fixtures.py"
    if not script.is_file():
        sys.exit(f"error: {script} is absent: --shared names the directory that holds tools/make_fixtures.py")
    if args.write:
        name, classes, height, width, file = args.write
        return write(script, name, int(classes), (int(height), int(width)), file)
    chosen = ARCHITECTURES
    if args.only:
        names = args.only.split(",")
        known = dict.fromkeys(row[0] for row in ARCHITECTURES)
        unknown = set(names) - set(known)
        if unknown:
            sys.exit(f"error: --only {', '.join(sorted(unknown))} is unknown; known are {', '.join(known)}")
        chosen = [row for row in ARCHITECTURES if row[0] in names]

    python = environment(args.venv)
    program = args.example or example()
    rows, failed = [], []
    for name, classes, *size in chosen:
        size = size or (224, 224)
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="lotep-full-size-") as directory:
            file = Path(directory) / f"{name}.safetensors"
            written = subprocess.run([python, __file__, "--shared", args.shared, "--write", name, str(classes),
                                      *map(str, size), file])
            if written.returncode != 0:
                sys.exit(f"error: timm could not write {name}")
            done = subprocess.run([program, file, "--arch", name], text=True, stdout=subprocess.PIPE)
        if done.returncode != 0:
            failed.append(f"{name} ({classes} classes, {size[0]}x{size[1]})")
        rows.append(done.stdout.strip() or f"| {name} | {classes} | {size[0]}x{size[1]} | | | | | FAIL |")
        print(f"{rows[-1]}  {time.monotonic() - started:.0f} s", flush=True)

    print(f"\nf32 against timm's float64: max|difference| / max|reference|, batch {BATCH}, random weights\n")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    print("\n".join(rows))
    if failed:
        sys.exit(f"error: {len(failed)} of {len(rows)} fail: {', '.join(failed)}")


def example(name="full_size"):
    """An example's executable, built once: a row must not depend on what is edited while another is made.

    Of these two packages alone: all of the workspace's have Criterion among them, whose features (`either/std` and others)
    Burn would be built anew for, which takes minutes. As it is, what the program's release build left is used again.
    """
    print(f"building the example {name}", flush=True)
    command = ["cargo", "build", "--release", "-p", "lotep", "-p", "lotep-cli", "--example", name]
    # Errors go to the terminal, not among the messages.
    built = subprocess.run([*command, "--message-format", "json-render-diagnostics"], cwd=REPOSITORY, text=True,
                           stdout=subprocess.PIPE)
    if built.returncode != 0:
        sys.exit(f"error: the example does not build: {' '.join(command)}")
    messages = map(json.loads, built.stdout.splitlines())
    return next(m["executable"] for m in messages
                if m["reason"] == "compiler-artifact" and m["target"]["name"] == name and m["executable"])


def environment(directory):
    """The Python of the virtual environment, which is made, and completed, if need be."""
    python = directory.absolute() / "bin" / "python"
    if not python.exists():
        print(f"making a virtual environment in {directory}", flush=True)
        venv.create(directory, with_pip=True)
    modules = ["PIL" if package == "pillow" else package for package in PACKAGES]
    probe = "import importlib.util, sys; sys.exit(any(importlib.util.find_spec(m) is None for m in sys.argv[1:]))"
    if subprocess.run([python, "-c", probe, *modules]).returncode != 0:
        print(f"installing {', '.join(PACKAGES)}", flush=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def write(script, name, classes, size, file):
    """Inside the virtual environment: timm's weights, input and float64 answers of one architecture."""
    spec = importlib.util.spec_from_file_location("make_fixtures", script)
    fixtures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fixtures)
    # The script's table has short names of a few of these; under timm's own names it can have them all.
    fixtures.FULL[name] = (name, classes)
    init, stored = fixtures.seeded_init, {}
    image = fixtures.seeded_input(SEED, BATCH, *size)
    fixtures.seeded_input = lambda *_: image

    def initialised(model, seed):
        model = init(model, seed)
        if "_bn_" in name:
            calibrate(model, image)
        stored.update((key, value.clone()) for key, value in model.state_dict().items())
        model = clear_of_kinks(at_size(model, name, classes, size), image)
        clear_of_ties(model, image)
        return model

    fixtures.seeded_init = initialised
    sys.stdout = sys.stderr
    fixtures.full(name, SEED, file, batch=BATCH, grads=True, f64=True)
    restore(file, stored)


def at_size(model, name, classes, size):
    """The model made for images of another size, its tables resampled by timm."""
    import importlib

    import timm

    if size == (224, 224):
        return model
    try:
        other = timm.create_model(name, pretrained=False, num_classes=classes, img_size=size, drop_path_rate=0.).eval()
    except TypeError:
        # A convolutional network takes any.
        return model
    adapt = importlib.import_module(type(model).__module__).checkpoint_filter_fn
    other.load_state_dict(adapt(model.state_dict(), other))
    return other


def restore(file, stored):
    """Put tables back as they were before they were resampled: doing that is the reader's task."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    changed = [key for key, value in stored.items() if key in tensors and tensors[key].shape != value.shape]
    if changed:
        tensors.update((key, stored[key].contiguous()) for key in changed)
        save_file(tensors, file)


def clear_of_kinks(model, image, margin=3e-5):
    """Move the biases in front of ReLUs a little, until no ReLU's input on `image` is within `margin` of zero.

    Of millions of inputs one or two are so near zero that f32 rounds them to the other side. Each turns a gradient
    on or off there, and the comparison would be of that accident, not of the networks.
    """
    import copy

    import torch

    exact = copy.deepcopy(model).double()

    def settle(name, relu):
        # Behind a norm, or in squeeze and excitation behind a convolution.
        place = name.rpartition(".")[0] + ".fc1" if ".se" in name else name.replace("act", "bn")
        norm = model.get_submodule(place)

        def before(_relu, inputs):
            # The new bias is rounded as the file will hold it; a channel moves on until it is clear.
            old, new = norm.bias.data.double(), norm.bias.data.clone()
            near = torch.ones(len(old), dtype=torch.bool)
            while near.any():
                moved = inputs[0] + (new.double() - old)[:, None, None]
                near = (moved.abs() < margin).any(dim=3).any(dim=2).any(dim=0)
                new[near] += 4 * margin
            norm.bias.data = new
            return moved

        relu.register_forward_pre_hook(before)

    # Those that make position biases see nothing of the image.
    relus = [(name, module) for name, module in exact.named_modules()
             if isinstance(module, torch.nn.ReLU) and ".rel_pos." not in name]
    for name, relu in relus:
        settle(name, relu)
    if relus:
        with torch.no_grad():
            exact(image.double())
    return model


def calibrate(model, image):
    """Give batch norms the statistics of `image`: where blocks have no other norms, random ones let activations grow until
    the loss has no gradient left to compare."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    with torch.no_grad():
        model(image)
    model.eval()


def clear_of_ties(model, image, margin=2e-6, most=300):
    """Move pixels of `image` a little, until no window of a maximum pooling has two greatest values within `margin`.

    As with ReLUs: of a million windows a few are so near a tie that f32 takes the other one, and hands it the gradient.
    Ties in the first pooling are moved where they are; any move changes those of all deeper ones.
    """
    import copy

    import torch

    # A ResNet's pooling is behind a ReLU, where ties are zeros, whose gradient goes nowhere.
    if not any(name.endswith("shortcut.pool") and isinstance(module, torch.nn.MaxPool2d)
               for name, module in model.named_modules()):
        return
    exact, ties = copy.deepcopy(model).double(), []

    def look(_pool, inputs):
        windows = torch.nn.functional.pad(inputs[0], (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, 2).unfold(3, 3, 2)
        first, second = windows.flatten(4).topk(2).values.unbind(4)
        ties.append(((first - second < margin).any(1), inputs[0].shape[2]))

    for module in exact.modules():
        if isinstance(module, torch.nn.MaxPool2d):
            module.register_forward_pre_hook(look)
    dice = torch.Generator().manual_seed(SEED)
    for _ in range(most):
        ties.clear()
        with torch.no_grad():
            exact(image.double())
        moved = False
        for sample in range(len(image)):
            found = [(at[sample].nonzero(), side) for at, side in ties if at[sample].any()]
            if not found:
                continue
            moved = True
            # Windows of the first pooling are four pixels apart.
            (places, side), scale = found[0], image.shape[2] // 56
            if side == ties[0][1]:
                for row, column in places.tolist():
                    image[sample, :, row * scale, column * scale] += 0.01
            else:
                row, column = (torch.randint(s, (1,), generator=dice).item() for s in image.shape[2:])
                image[sample, :, row, column] += 0.01
        if not moved:
            return
    sys.exit(f"error: no image without ties after {most} tries")


if __name__ == "__main__":
    main()
