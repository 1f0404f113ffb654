#!/usr/bin/env python3
"""Compare the speed and the memory of training steps and predictions with PyTorch and timm, in one run.

    python3 benches/peers/speed.py [--venv target/peers-venv] [--only vit_base_patch16_224] [--batches 1,8,32]
                                   [--modes train,infer] [--rounds 3] [--compile] [--output FILE.json]

The work: `train` is a forward pass, cross-entropy and a backward pass to an additive image prompt through frozen
weights (LoR-VP's step; lotep's has the update too); `infer` a forward pass. 224 pixels, random weights, random images.

Peers: f32, bfloat16 autocast and the whole model in bfloat16, ResNets with channels last; with --compile each of them
through torch.compile as well. Every one runs in a process of its own with all cores, because peak memory is a
process's. Rounds interleave: each round runs lotep and every peer once; a process's figure is its median step, and
the table's ratios are medians over rounds of (peer / lotep) in the same round, so that what a shared machine does to
one it mostly does to all. A ratio above 1 says that lotep is faster, or takes less memory.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from full_size import REPOSITORY, environment

ARCHITECTURES = ["vit_base_patch16_224", "vit_base_patch32_224", "resnet18", "resnet50"]
PEERS = ["f32", "autocast", "bf16"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=REPOSITORY / "target" / "peers-venv",
                        help="virtual environment, made if absent (default: target/peers-venv)")
    parser.add_argument("--only", metavar="NAMES", help="some of the architectures, with commas between")
    parser.add_argument("--batches", default="1,8,32", help="images a step (default: 1,8,32)")
    parser.add_argument("--modes", default="train,infer", help="train, infer or both (default)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default: 3)")
    parser.add_argument("--steps", type=int, default=5, help="counted steps a process (default: 5)")
    parser.add_argument("--precision", default="auto", help="lotep's precision (default: auto)")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"some of {','.join(PEERS)}")
    parser.add_argument("--compile", action="store_true", help="add torch.compile of each peer")
    parser.add_argument("--output", type=Path, help="write every figure as JSON")
    parser.add_argument("--peer", nargs=5, metavar=("NAME", "MODE", "BATCH", "PEER", "STEPS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        name, mode, batch, peer, steps = args.peer
        return print(json.dumps(measure_peer(name, mode, int(batch), peer, int(steps))))

    python = environment(args.venv)
    subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=REPOSITORY, check=True)
    peers = [p for p in args.peers.split(",") if p]
    peers += [f"{p}+compile" for p in peers] if args.compile else []
    records = []
    print("| network | mode | batch | lotep ms | best peer | its ms | speed ratio | lotep MB | its MB | memory ratio |")
    print("|---|---|--:|--:|---|--:|--:|--:|--:|--:|", flush=True)
    for name in args.only.split(",") if args.only else ARCHITECTURES:
        for batch in map(int, args.batches.split(",")):
            for mode in args.modes.split(","):
                rounds = []
                for _ in range(args.rounds):
                    row = {"lotep": measure_ours(name, mode, batch, args.steps, args.precision)}
                    for peer in peers:
                        command = [python, __file__, "--peer", name, mode, str(batch), peer, str(args.steps)]
                        done = subprocess.run(command, check=True, capture_output=True, text=True)
                        row[peer] = json.loads(done.stdout.splitlines()[-1])
                    rounds.append(row)
                records.append({"network": name, "mode": mode, "batch": batch, "rounds": rounds})
                print(table_row(name, mode, batch, peers, rounds), flush=True)
    if args.output:
        args.output.write_text(json.dumps(records, indent=1))


def table_row(name, mode, batch, peers, rounds):
    median = lambda who, what: statistics.median(r[who][what] for r in rounds)
    ratio = lambda who, what: statistics.median(r[who][what] / r["lotep"][what] for r in rounds)
    best = min(peers, key=lambda p: median(p, "step_ms"))
    cells = [name, mode, batch, f"{median('lotep', 'step_ms'):.0f}", best, f"{median(best, 'step_ms'):.0f}",
             f"{ratio(best, 'step_ms'):.2f}", f"{median('lotep', 'peak_rss_mb'):.0f}",
             f"{median(best, 'peak_rss_mb'):.0f}", f"{ratio(best, 'peak_rss_mb'):.2f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def measure_ours(name, mode, batch, steps, precision):
    command = [REPOSITORY / "target" / "release" / "lotep", "bench", mode, "--backbone", name, "--random-weights",
               "--method", "lor-vp", "--batch-size", str(batch), "--steps", str(steps), "--precision", precision,
               "--format", "json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    report = json.loads(done.stdout.splitlines()[-1])
    return {key: report[key] for key in ("step_ms", "peak_rss_mb")}


def measure_peer(name, mode, batch, peer, steps):
    """Median step and peak memory of PyTorch, in this process."""
    import resource

    import timm
    import torch

    kind, _, compiled = peer.partition("+")
    model = timm.create_model(name, pretrained=False).eval().requires_grad_(False)
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    layout = torch.channels_last if "resnet" in name or "conv" in name else torch.contiguous_format
    model = model.to(dtype).to(memory_format=layout)
    run = torch.compile(model) if compiled else model
    images = torch.rand(batch, 3, 224, 224).to(dtype).to(memory_format=layout)
    labels = torch.arange(batch) % 1000
    prompt = torch.zeros(1, 3, 224, 224, dtype=dtype, requires_grad=True)
    autocast = lambda: torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast")

    def step():
        if mode == "infer":
            with torch.no_grad(), autocast():
                run(images)
            return
        with autocast():
            logits = run(images + prompt)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        prompt.grad = None

    times = []
    for i in range(2 + steps):
        start = time.perf_counter()
        step()
        if i >= 2:
            times.append(1000 * (time.perf_counter() - start))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"step_ms": statistics.median(times), "peak_rss_mb": peak}


if __name__ == "__main__":
    sys.exit(main())
