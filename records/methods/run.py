#!/usr/bin/env python3
"""All methods on three pairs of network and images, the same budget for each, three seeds.

    python3 records/methods/run.py SHARED OUTPUT [--program lotep] [--seeds 0,1,2] [--pairs cifar10,dtd10,gtsrb]

For every pair and method the learning rate of what the method learns (a linear probe's: of the classifier) is chosen among
three by `lotep sweep` on a quarter of the training images, held out, with seed 0 and successive halving. Then each seed
trains on all training images with that rate, to the last epoch, and the test split is measured once. Everything else is at
the program's defaults. What is there already is not run again. `--table` only prints the table of OUTPUT, and
`runs.jsonl` there has every run.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

PAIRS = {
    "cifar10": ("resnet18", ["--image-size", "112", "--subset", "860", "--epochs", "6"]),
    "dtd10": ("vit_tiny_patch16_224", ["--subset", "400", "--epochs", "4"]),
    "gtsrb": ("vit_tiny_patch16_224", ["--subset", "860", "--epochs", "4"]),
}
SHARED_OPTIONS = ["--batch-size", "16"]
# Rates around the defaults: a quarter, one and four times. The first is of ResNets, the second of ViTs.
RATES = {
    "linear-probe": (0.02, 0.005),
    "full": (1e-4, 1e-4),
    "lora": (0.005, 0.1),
    "lor-vp": (0.005, 0.02),
    "border": (10, 10),
    "ilm-vp": (0.1, 0.1),
    "auto-vp": (0.001, 0.001),
    "lotep-cp": (0.02, 0.02),
    "lotep-tk": (0.02, 0.02),
    "naive-deep": (0.005, 0.02),
    "grouped": (0.005, 0.02),
    "deep-lor-vp": (0.005, 0.02),
    "vpt-shallow": (None, 0.002),
    "vpt-deep": (None, 0.002),
    "e2vpt": (None, 0.0005),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--program", default="lotep")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--pairs", default=",".join(PAIRS))
    parser.add_argument("--methods", default=",".join(RATES))
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    if not args.table:
        seeds = [int(s) for s in args.seeds.split(",")]
        for seed in seeds:
            for pair in args.pairs.split(","):
                for method in args.methods.split(","):
                    if RATES[method][PAIRS[pair][0].startswith("vit")] is not None:
                        one(args, pair, method, seed)
    table(args.output)


def settings(args, pair):
    network, options = PAIRS[pair]
    where = ["--backbone", f"{args.shared}/data/backbones/{network}", "--data", f"{args.shared}/data/images/{pair}"]
    return where + options + SHARED_OPTIONS


def one(args, pair, method, seed):
    """A run, if it is not there."""
    run = args.output / f"{pair}-{method}-{seed}"
    record = run.with_suffix(".json")
    if record.exists():
        return
    rate = chosen(args, pair, method)
    name = "--lr" if method == "linear-probe" else "--prompt-lr"
    options = [*settings(args, pair), "--method", method, name, str(rate), "--seed", str(seed)]
    command = [args.program, "train", "-q", "--resume", "--format", "json", "--output", run, *options]
    print(time.strftime("%H:%M:%S"), pair, method, seed, rate, file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{run.name}: {done.stderr.strip()}", file=sys.stderr)
        return
    result = json.loads(done.stdout)
    record.write_text(json.dumps({"pair": pair, "method": method, "seed": seed, "rate": rate, "result": result}))
    for part in ("checkpoints", "adapter"):
        subprocess.run(["rm", "-rf", run / part], check=True)


def chosen(args, pair, method):
    """The rate that held-out training images prefer."""
    where = args.output / f"{pair}-{method}-sweep"
    record = where / "result.json"
    name = "lr" if method == "linear-probe" else "prompt_lr"
    if not record.exists():
        middle = RATES[method][PAIRS[pair][0].startswith("vit")]
        sets = [f"method={method}", f"{name}=" + ",".join(f"{middle * f:g}" for f in (0.25, 1, 4)), "val_fraction=0.25"]
        options = iter(settings(args, pair))
        sets += [f"{option[2:].replace('-', '_')}={value}" for option, value in zip(options, options)]
        command = [args.program, "sweep", "-q", "--halving", "3", "--output", where]
        command += [word for s in sets for word in ("--set", s)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{where.name}: {done.stderr.strip()}")
    return json.loads(record.read_text())["trials"][0]["config"][name]


def table(output):
    records = [json.loads(file.read_text()) for file in sorted(output.glob("*.json"))]
    (output / "runs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    groups = {}
    for r in records:
        groups.setdefault((r["pair"], r["method"]), []).append(r)
    print("| pair | method | rate | test top-1 | seeds | prompts | head | seconds | MB |")
    print("|---|---|--:|--:|---|--:|--:|--:|--:|")
    order = lambda key: (list(PAIRS).index(key[0]), list(RATES).index(key[1]))
    for key in sorted(groups, key=order):
        runs = sorted(groups[key], key=lambda r: r["seed"])
        results = [r["result"] for r in runs]
        tops = [r["train"]["test"]["top1"] for r in results]
        spread = f" ± {statistics.stdev(tops):.2f}" if len(tops) > 1 else ""
        middle = lambda what: f"{statistics.median(r['train'][what] for r in results):.0f}"
        first = results[0]["train"]
        cells = [*key, f"{runs[0]['rate']:g}", f"{statistics.mean(tops):.2f}{spread}",
                 ", ".join(f"{t:.2f}" for t in tops), first["prompt_parameters"], first["head_parameters"],
                 middle("seconds"), middle("peak_rss_mb")]
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
