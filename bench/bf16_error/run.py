#!/usr/bin/env python3
"""Errors in bf16 on a GPU: ours beside transformers', both against the f32 logits in golden directories.

usage: run.py --fathom build/fathom DIR [DIR ...] [--times 2] [--json]

Each DIR holds a checkpoint and its reference.safetensors (input_ids.i, logits.i in f32). transformers loads the checkpoint in bf16 and computes
in it, `fathom verify --device cuda --dtype bf16` does the same; the largest absolute difference of a logit from the reference is compared.
Exit code 1 when ours is larger than --times transformers'. Needs torch, transformers 5 and safetensors.
"""
import argparse
import json
import pathlib
import subprocess
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def error_of_transformers(folder, device):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager").eval().to(device)
    reference = load_file(folder / "reference.safetensors")
    worst = 0.0
    with torch.no_grad():
        for i in range(sum(name.startswith("input_ids.") for name in reference)):
            ids = reference[f"input_ids.{i}"].to(device, torch.int64)[None]
            logits = model(ids, use_cache=False).logits[0].float().cpu()
            worst = max(worst, (logits - reference[f"logits.{i}"]).abs().max().item())
    return worst


def error_of_fathom(fathom, folder):
    command = [fathom, "verify", str(folder), "--device", "cuda", "--dtype", "bf16", "--atol", "1e9", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if not run.stdout.strip():
        sys.exit(f"{' '.join(command)}: {run.stderr.strip()}")
    return {way: max(case["max_difference"] for case in json.loads(run.stdout)["cases"] if case["way"] == way) for way in ("whole", "chunks", "tokens")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--fathom", default="build/fathom")
    parser.add_argument("--times", type=float, default=2.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    args = parser.parse_args()
    rows = []
    for folder in args.folders:
        ours = error_of_fathom(args.fathom, folder)
        try:
            theirs = error_of_transformers(folder, "cuda")
        except RuntimeError as error:  # some architectures mix types there
            print(f"{folder.name:20} transformers cannot compute it in bf16 ({str(error).splitlines()[0]}); ours {max(ours.values()):8.4f}", file=sys.stderr)
            continue
        rows.append({"model": folder.name, "transformers": theirs, **ours, "ratio": max(ours.values()) / theirs})
        if not args.json:
            row = rows[-1]
            print(f"{row['model']:20} transformers {theirs:8.4f}   ours whole {row['whole']:8.4f}  chunks {row['chunks']:8.4f}  tokens {row['tokens']:8.4f}   ratio {row['ratio']:5.2f}", flush=True)
    if args.json:
        json.dump(rows, sys.stdout, indent=2)
    return 0 if all(row["ratio"] <= args.times for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
