#!/usr/bin/env python3
"""Search views: train/ and test/ made of links to images of the TRAINING split only; the real test split is not touched.
usage: views.py SHARED OUT.  Two views (0, 1) a data set; for GTSRB whole tracks are held out."""
import os, random, sys
shared, out = os.path.abspath(sys.argv[1]), sys.argv[2]
for name, share in (("gtsrb", .35), ("cifar10", .2), ("dtd10", .5)):
    src = f"{shared}/data/images/{name}/train"
    for view in (0, 1):
        rng = random.Random(f"{name}{view}")
        count = [0, 0]
        for c in sorted(os.listdir(src)):
            files = sorted(os.listdir(f"{src}/{c}"))
            unit = (lambda f: f.split("_")[0]) if name == "gtsrb" else (lambda f: f)
            units = sorted({unit(f) for f in files}); rng.shuffle(units)
            held = set(units[:max(1, round(len(units) * share))])
            for f in files:
                if name == "gtsrb" and unit(f) in held and files.index(f) % 2: continue  # half of a held-out track's frames
                part = "test" if unit(f) in held else "train"
                count[part == "test"] += 1
                d = f"{out}/{name}-{view}/{part}/{c}"; os.makedirs(d, exist_ok=True)
                if not os.path.lexists(f"{d}/{f}"): os.symlink(f"{src}/{c}/{f}", f"{d}/{f}")
        print(name, view, "train", count[0], "held out", count[1])
