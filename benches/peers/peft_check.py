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
BACKBONE = "vit_tiny_patch16_224"
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


def network(directory: Path, classes: int):
    import timm
    from safetensors.torch import load_file

    model = timm.create_model(BACKBONE, num_classes=classes)
    weights = {k: v for k, v in load_file(directory / "model.safetensors").items() if not k.startswith("head.")}
    missing, extra = model.load_state_dict(weights, strict=False)
    assert set(missing) == {"head.weight", "head.bias"} and not extra, (missing, extra)
    return model.eval()


def pixels(paths):
    import numpy
    import torch
    from PIL import Image

    def one(path):
        image = Image.open(path).convert("RGB").resize((224, 224), Image.BILINEAR)
        return (torch.from_numpy(numpy.array(image)).permute(2, 0, 1).float() / 255 - 0.5) / 0.5

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

    backbone = args.shared / "data" / "backbones" / BACKBONE
    data = args.shared / "data" / "images" / "dtd10"
    paths = sorted(str(p) for p in (data / "test").rglob("*") if p.is_file())[:IMAGES]
    x = pixels(paths)

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
        directory = Path(directory)
        for targets in [["qkv"], ["qkv", "attn.proj", "fc1", "fc2"]]:
            torch.manual_seed(0)
            config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, modules_to_save=["head"])
            model = get_peft_model(network(backbone, 10), config)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_(std=0.05)
            model.eval()
            saved, adapter = directory / f"peft-{len(targets)}", directory / f"imported-{len(targets)}"
            model.save_pretrained(saved)
            lotep("import", "--peft", saved, "--backbone", backbone, "--output", adapter)
            with torch.no_grad():
                row(f"PEFT to lotep, {', '.join(targets)}", logits(adapter, directory), model(x))
        for targets in ["q,v", "qkv,proj,fc1,fc2", "v,fc2"]:
            run, files = directory / f"run-{targets}", directory / f"exported-{targets}"
            lotep("train", "--backbone", backbone, "--data", data, "--method", "lora", "--rank", 4, "--targets", targets,
                  "--subset", 64, "--epochs", 1, "--batch-size", 16, "--prompt-lr", 0.5, "--precision", "f32",
                  "--output", run)
            lotep("export", "--adapter", run / "adapter", "--peft", "--output", files)
            classes = len(json.loads((run / "adapter" / "adapter_config.json").read_text())["classes"])
            model = PeftModel.from_pretrained(network(backbone, classes), files).eval()
            with torch.no_grad():
                row(f"lotep to PEFT, {targets}", logits(run / "adapter", directory), model(x))
    return int(worst > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
