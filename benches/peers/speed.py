#!/usr/bin/env python3
"""Compare the speed and the memory of training steps and predictions with PyTorch and timm, in one run.

    python3 benches/peers/speed.py [--venv target/peers-venv] [--only vit_base_patch16_224] [--batches 1,8,32]
                                   [--modes train,infer,methods] [--methods lor-vp,lora,vpt-deep,e2vpt,full] [--rounds 3]
                                   [--image-size 224] [--compile] [--device cuda] [--decode FOLDER] [--output FILE.json]

The work: `train` is a forward pass, cross-entropy and a backward pass to what the method learns, through frozen weights:
by default to an additive image prompt (LoR-VP's step); lotep's has the update and the classifier's gradient too. `infer` is a
forward pass. 224 pixels, random weights, random images. The methods in PyTorch are in `peer_methods.py`; LoRA is PEFT's.
With `full` every weight is learnt, the network is in training mode, and both take a step of SGD with momentum.

Peers: f32, bfloat16 autocast and the whole model in bfloat16, ResNets with channels last; with --compile each of them
through torch.compile as well. Every one runs in a process of its own with all cores, because peak memory is a
process's. Rounds interleave: each round runs lotep and every peer once; a process's figure is its median step, and
the table's ratios are medians over rounds of (peer / lotep) in the same round, so that what a shared machine does to
one it mostly does to all. A ratio above 1 says that lotep is faster, or takes less memory.

`methods` is about lotep alone: what the methods' steps cost over LoR-VP's, LoR-VP's over a bare backward pass to the
image, and predictions with merged prompts over the plain network. These are a few percent, so one process takes the
steps in turns, and the figure is the median of the ratios of neighbours, with quartiles.

--device cuda runs both on a GPU; memory is then the GPU's, as its driver tells it while a process runs, less what it
told before. --program and --python take a lotep and a Python that are there instead of making them.

--decode FOLDER compares reading its image files: decode and resize to 224 by 224, bilinear, on one thread, with
Pillow and, where torchvision can read them all, its JPEG decoder and antialiased resize. lotep's time has the conversion
to f32 as well. Rounds interleave here too.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from full_size import REPOSITORY, environment

ARCHITECTURES = [
    "vit_base_patch16_224",
    "vit_base_patch32_224",
    "resnet18",
    "resnet50",
    "swin_base_patch4_window7_224",
    "convnext_base",
    "coatnet_2_rw_224",
]
PEERS = ["f32", "autocast", "bf16"]
# Of lotep's bench, the methods that take turns; each is compared with the first.
TURNS = [("train", "none,lor-vp"), ("train", "lor-vp,lotep-cp,lotep-tk"), ("infer", "none,lor-vp,lotep-cp,lotep-tk")]
# Where cargo puts what it builds; `--program` names another.
PROGRAM = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")) / "release" / "lotep"
READERS = ["pillow", "torchvision"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=REPOSITORY / "target" / "peers-venv",
                        help="virtual environment, made if absent (default: target/peers-venv)")
    parser.add_argument("--only", metavar="NAMES", help="some of the architectures, with commas between")
    parser.add_argument("--batches", default="1,8,32", help="images a step (default: 1,8,32)")
    parser.add_argument("--modes", default="train,infer,methods", help="some of train,infer,methods (default: all)")
    parser.add_argument("--methods", default="lor-vp", help="of steps: some of lor-vp,lora,vpt-deep,e2vpt,full (default: lor-vp)")
    parser.add_argument("--image-size", type=int, default=224, help="side of the images, of ResNets (default: 224)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default: 3)")
    parser.add_argument("--steps", type=int, default=5, help="counted steps a process (default: 5)")
    parser.add_argument("--precision", default="auto", help="lotep's precision (default: auto)")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"some of {','.join(PEERS)}")
    parser.add_argument("--compile", action="store_true", help="add torch.compile of each peer")
    parser.add_argument("--device", default="cpu", help="of both: cpu or cuda (default: cpu)")
    parser.add_argument("--program", type=Path, help="a built lotep (default: built here)")
    parser.add_argument("--python", help="a Python with torch and timm (default: that of --venv)")
    parser.add_argument("--turns", type=int, default=30, help="counted steps of each method in `methods` (default: 30)")
    parser.add_argument("--decode", type=Path, metavar="FOLDER", help="compare reading the images in FOLDER, too")
    parser.add_argument("--output", type=Path, help="write every figure as JSON")
    parser.add_argument("--read", nargs=2, metavar=("READER", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--peer", nargs=7,
                        metavar=("NAME", "MODE", "METHOD", "BATCH", "PEER", "STEPS", "DEVICE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        name, mode, method, batch, peer, steps, device = args.peer
        size = args.image_size
        return print(json.dumps(measure_peer(name, mode, method, int(batch), size, peer, int(steps), device)))

    if args.read:
        return print(json.dumps(measure_reader(args.read[0], Path(args.read[1]))))

    python = args.python or environment(args.venv)
    if args.program is None:
        args.program = PROGRAM
        subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=REPOSITORY, check=True)
    peers = [p for p in args.peers.split(",") if p]
    peers += [f"{p}+compile" for p in peers] if args.compile else []
    names = args.only.split(",") if args.only else ARCHITECTURES
    batches = [int(b) for b in args.batches.split(",")]
    modes = args.modes.split(",")
    records = []
    if "train" in modes or "infer" in modes:
        records += compare_steps(python, args, names, batches, [m for m in modes if m != "methods"], peers)
    if "methods" in modes:
        records += compare_methods(args, names, batches)
    if args.decode:
        records += compare_reading(python, args.program, args.decode, args.rounds)
    if args.output:
        args.output.write_text(json.dumps(records, indent=1))


def compare_steps(python, args, names, batches, modes, peers):
    records = []
    print("| network | step | batch | lotep ms | best peer | its ms | speed ratio | lotep MB | its MB | memory ratio |")
    print("|---|---|--:|--:|---|--:|--:|--:|--:|--:|", flush=True)
    steps = [(mode, method) for mode in modes for method in args.methods.split(",")]
    for name in names:
        for batch in batches:
            for mode, method in steps:
                rounds = []
                for _ in range(args.rounds):
                    row = {"lotep": measured(bench(args, name, mode, batch, args.steps, method), args.device)}
                    for peer in peers:
                        command = [python, __file__, "--image-size", args.image_size,
                                   "--peer", name, mode, method, batch, peer, args.steps, args.device]
                        row[peer] = measured(list(map(str, command)), args.device)
                    rounds.append(row)
                records.append({"network": name, "mode": mode, "method": method, "batch": batch, "rounds": rounds})
                print(table_row(name, f"{mode} {method}", batch, peers, rounds), flush=True)
    return records


def compare_methods(args, names, batches):
    records = []
    print("\n| network | mode | batch | method | ms | over | ratio | quartiles |")
    print("|---|---|--:|---|--:|---|--:|--:|", flush=True)
    for name in names:
        for batch in batches:
            for mode, methods in TURNS:
                lines = output_of(bench(args, name, mode, batch, args.turns, methods))
                reports = [json.loads(line) for line in lines]
                records += reports
                for r in reports[1:]:
                    ratio = r["ratio"]
                    quartiles = f"{ratio['low']:.3f} to {ratio['high']:.3f}"
                    cells = [name, mode, batch, r["method"], f"{r['step_ms']:.1f}", ratio["to"],
                             f"{ratio['median']:.3f}", quartiles]
                    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    return records


def compare_reading(python, program, folder, rounds):
    def ours():
        command = [program, "bench", "decode", folder, "--passes", "1", "--workers", "1,0", "--format", "json"]
        reports = [json.loads(line) for line in output_of(command)]
        # On a machine of one core there is one report.
        return {"lotep": reports[0]["images_per_second"], "lotep, all threads": reports[-1]["images_per_second"]}

    rows = []
    for _ in range(rounds):
        row = ours()
        for reader in READERS:
            row[reader] = json.loads(output_of([python, __file__, "--read", reader, str(folder)])[-1])
        rows.append(row)
    print("\n| reader | images/s | lotep's rate over it |")
    print("|---|--:|--:|")
    for who in rows[0]:
        if all(row[who] for row in rows):
            rate = statistics.median(row[who] for row in rows)
            ratio = statistics.median(row["lotep"] / row[who] for row in rows)
            print(f"| {who} | {rate:.0f} | {ratio:.2f} |", flush=True)
    return [{"mode": "decode", "rounds": rows}]


def table_row(name, mode, batch, peers, rounds):
    median = lambda who, what: statistics.median(r[who][what] for r in rounds)
    ratio = lambda who, what: statistics.median(r[who][what] / r["lotep"][what] for r in rounds)
    best = min(peers, key=lambda p: median(p, "step_ms"))
    cells = [name, mode, batch, f"{median('lotep', 'step_ms'):.0f}", best, f"{median(best, 'step_ms'):.0f}",
             f"{ratio(best, 'step_ms'):.2f}", f"{median('lotep', 'peak_rss_mb'):.0f}",
             f"{median(best, 'peak_rss_mb'):.0f}", f"{ratio(best, 'peak_rss_mb'):.2f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def bench(args, name, mode, batch, steps, methods):
    # A GPU's first steps choose between kernels.
    warmup = 2 if args.device == "cpu" else 5
    return [args.program, "bench", mode, "--backbone", name, "--random-weights", "--method", methods, "--batch-size",
            str(batch), "--steps", str(steps), "--warmup", str(warmup), "--precision", args.precision, "--device", args.device,
            "--image-size", str(args.image_size), "--format", "json"]


def output_of(command):
    """The lines that a program writes."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def measured(command, device):
    """The step and the peak memory in a program's last line; a GPU's memory is watched from outside."""
    if device == "cpu":
        report = json.loads(output_of(command)[-1])
    else:
        with GpuMemory() as memory:
            report = json.loads(output_of(command)[-1])
        report["peak_rss_mb"] = memory.peak
    return {key: report[key] for key in ("step_ms", "peak_rss_mb")}


class GpuMemory:
    """The most memory in MiB that the first GPU has in use meanwhile, less what it had before."""

    def __enter__(self):
        self.before, self.peak, self.done = self.now(), 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()

    def watch(self):
        while not self.done.wait(0.1):
            self.peak = max(self.peak, self.now() - self.before)

    @staticmethod
    def now():
        query = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        return float(output_of(query)[0])


def measure_peer(name, mode, method, batch, size, peer, steps, device):
    """Median step and peak memory of PyTorch, in this process."""
    import resource

    import timm
    import torch

    from peer_methods import adapted

    kind, _, compiled = peer.partition("+")
    model = timm.create_model(name, pretrained=False).eval().requires_grad_(False)
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    layout = torch.channels_last if any(word in name for word in ("resnet", "conv", "coat")) else torch.contiguous_format
    model = model.to(device, dtype).to(memory_format=layout)
    torch.set_default_device(device)
    forward, learnt = adapted(model, method, size, dtype) if mode == "train" or method != "lor-vp" else (model, [])
    run = torch.compile(forward) if compiled else forward
    images = torch.rand(batch, 3, size, size).to(dtype).to(memory_format=layout)
    labels = torch.arange(batch) % 1000
    # Of all weights, the update is a part of the work; of a method's few it is none.
    update = torch.optim.SGD(learnt, lr=1e-4, momentum=0.9).step if method == "full" and learnt else lambda: None
    autocast = lambda: torch.autocast(device, torch.bfloat16, enabled=kind == "autocast")

    def step():
        if mode == "infer":
            with torch.no_grad(), autocast():
                run(images)
            return
        with autocast():
            logits = run(images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        update()
        for parameter in learnt:
            parameter.grad = None

    times = []
    for i in range(2 + steps):
        start = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        if i >= 2:
            times.append(1000 * (time.perf_counter() - start))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"step_ms": statistics.median(times), "peak_rss_mb": peak}


def measure_reader(reader, folder):
    """Images a second on one thread, in this process; None where the reader can't read them all."""
    files = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp", ".bmp")]
    if reader == "pillow":
        from PIL import Image

        def read(file):
            Image.open(file).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    else:
        try:
            import torch
            from torchvision.io import ImageReadMode, decode_jpeg, read_file
            from torchvision.transforms.v2.functional import resize
        except ImportError:
            return None
        if any(p.suffix.lower() not in (".jpg", ".jpeg") for p in files):
            return None
        torch.set_num_threads(1)

        def read(file):
            resize(decode_jpeg(read_file(str(file)), mode=ImageReadMode.RGB), [224, 224], antialias=True)

    for file in files[:50]:
        read(file)
    start = time.perf_counter()
    for file in files:
        read(file)
    return len(files) / (time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
