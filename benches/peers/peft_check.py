#!/usr/bin/env python3
"""Check LoRA adapters against PEFT itself, in both directions.

    python3 benches/peers/peft_check.py [--shared ../shared] [--venv target/peers-venv] [--lotep PATH]

PEFT adds a LoRA with made-up factors to timm's network; lotep imports what it saves and gives the same logits. lotep
trains a LoRA for a few steps and exports it; PEFT loads that and gives the same logits. In f32, on real weights and real
images; a line each with max|difference| / max|reference|, status 1 if one is above 1e-5.

PyTorch, timm and PEFT are installed from PyPI into a virtual environment of their own, once.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ["torch", "timm", "peft", "safetensors", "numpy", "pillow"]
# Mean and standard deviation of the pixels, the classifier's name, and targets: PEFT's, and lotep's for training.
BACKBONES = {
    "vit_tiny_patch16_224": ([0.5] * 3, [0.5] * 3, "head", [["qkv"], ["qkv", "attn.proj", "fc1", "fc2"]],
                             ["q,v", "qkv,proj,fc1,fc2", "v,fc2"]),
    "resnet18": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], "fc",
                 [r"layer.*conv\d", r"layer[24].*(conv1|downsample\.0)"], ["layer1.0.conv2,downsample.0", "conv1,conv2"]),
}
IMAGES = 12


def enter_venv(path: Path) -> None:
    """Go on inside the virtual environment, which is made if it is not there."""
    python = path / "bin" / "python"
    if Path(sys.prefix).resolve() == path.resolve():
        return
    if not python.exists():
        venv.create(path, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    sys.exit(subprocess.run([python, *sys.argv]).returncode)


def network(name: str, directory: Path, classes: int):
    import timm
    from safetensors.torch import load_file

    model, classifier = timm.create_model(name, num_classes=classes), BACKBONES[name][2]
    weights = load_file(directory / "model.safetensors")
    weights = {k: v for k, v in weights.items() if not k.startswith(f"{classifier}.")}
    missing, extra = model.load_state_dict(weights, strict=False)
    missing = {name for name in missing if not name.endswith("num_batches_tracked")}
    assert missing == {f"{classifier}.weight", f"{classifier}.bias"} and not extra, (missing, extra)
    return model.eval()


def pixels(paths, mean, std):
    import numpy
    import torch
    from PIL import Image

    def one(path):
        image = Image.open(path).convert("RGB").resize((224, 224), Image.BILINEAR)
        x = torch.from_numpy(numpy.array(image)).permute(2, 0, 1).float() / 255
        return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    return torch.stack([one(path) for path in paths])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shared", type=Path, default=REPOSITORY.parent / "shared")
    parser.add_argument("--venv", type=Path, default=REPOSITORY / "target" / "peers-venv")
    parser.add_argument("--lotep", type=Path, default=REPOSITORY / "target" / "release" / "lotep")
    args = parser.parse_args()
    enter_venv(args.venv)

    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.torch import load_file

    data = args.shared / "data" / "images" / "dtd10"
    paths = sorted(str(p) for p in (data / "test").rglob("*") if p.is_file())[:IMAGES]

    def lotep(*arguments):
        ran = subprocess.run([args.lotep, *map(str, arguments)], capture_output=True, text=True)
        if ran.returncode != 0:
            sys.exit(f"lotep {arguments[0]}: {ran.stderr.splitlines()[-1]}")

    def logits(adapter: Path, directory: Path):
        file = directory / "logits.safetensors"
        lotep("predict", "--adapter", adapter, "--precision", "f32", "--logits", file, *paths)
        return load_file(file)["logits"]

    worst = 0.0

    def row(what, found, expected):
        nonlocal worst
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        worst = max(worst, error)
        print(f"{what}: {error:.1e}", flush=True)

    with tempfile.TemporaryDirectory() as directory:
        for name, (mean, std, classifier, theirs, ours) in BACKBONES.items():
            work, backbone = Path(directory) / name, args.shared / "data" / "backbones" / name
            work.mkdir()
            x = pixels(paths, mean, std)
            for number, targets in enumerate(theirs):
                torch.manual_seed(0)
                config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, modules_to_save=[classifier])
                model = get_peft_model(network(name, backbone, 10), config)
                with torch.no_grad():
                    for key, parameter in model.named_parameters():
                        if "lora_B" in key:
                            parameter.normal_(std=0.05)
                model.eval()
                saved, adapter = work / f"peft-{number}", work / f"imported-{number}"
                model.save_pretrained(saved)
                lotep("import", "--peft", saved, "--backbone", backbone, "--output", adapter)
                with torch.no_grad():
                    row(f"{name}, PEFT to lotep, {targets}", logits(adapter, work), model(x))
            for targets in ours:
                run, files = work / f"run-{targets}", work / f"exported-{targets}"
                lotep("train", "--backbone", backbone, "--data", data, "--method", "lora", "--rank", 4,
                      "--targets", targets, "--subset", 64, "--epochs", 1, "--batch-size", 16, "--precision", "f32",
                      "--output", run)
                lotep("export", "--adapter", run / "adapter", "--peft", "--output", files)
                classes = len(json.loads((run / "adapter" / "adapter_config.json").read_text())["classes"])
                model = PeftModel.from_pretrained(network(name, backbone, classes), files).eval()
                with torch.no_grad():
                    row(f"{name}, lotep to PEFT, {targets}", logits(run / "adapter", work), model(x))
    return int(worst > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
