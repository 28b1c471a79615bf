#!/usr/bin/env python3
"""Makes the golden fixtures small enough to commit: checkpoints stay whole, prompts are dropped whole, so that
`fathom verify` reads the result as it reads the original.

usage: slim_golden.py SOURCE DESTINATION [--keep N] [--longest NAME ...]

SOURCE has one folder a model with config.json, model*.safetensors and reference.safetensors (input_ids.i, logits.i, greedy.i).
Of each reference the N shortest prompts are kept (default 2). Folders named with --longest keep their shortest and their longest
prompt instead: compression, windows and indexers act only on text that is long enough. Standard library only."""
import argparse
import json
import pathlib
import shutil
import struct
import sys


def read_safetensors(path):
    """{name: (dtype, shape, bytes)}"""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    body = memoryview(data)[8 + length :]
    return {name: (t["dtype"], t["shape"], bytes(body[t["data_offsets"][0] : t["data_offsets"][1]])) for name, t in header.items()}


def write_safetensors(path, tensors):
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def kept_prompts(reference, keep, longest):
    count = sum(name.startswith("input_ids.") for name in reference)
    by_length = sorted(range(count), key=lambda i: reference[f"input_ids.{i}"][1][0])
    return by_length[:1] + by_length[-1:] if longest else by_length[:keep]


def slim(source, destination, keep, longest):
    destination.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.name == "config.json" or file.name.startswith("model"):
            shutil.copyfile(file, destination / file.name)
    reference = read_safetensors(source / "reference.safetensors")
    slimmed = {}
    for new, old in enumerate(kept_prompts(reference, keep, longest)):
        for what in ("logits", "input_ids", "greedy"):
            if f"{what}.{old}" in reference:
                slimmed[f"{what}.{new}"] = reference[f"{what}.{old}"]
    write_safetensors(destination / "reference.safetensors", slimmed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("destination", type=pathlib.Path)
    parser.add_argument("--keep", type=int, default=2)
    parser.add_argument("--longest", nargs="*", default=[])
    arguments = parser.parse_args()
    folders = sorted(f for f in arguments.source.iterdir() if (f / "reference.safetensors").is_file())
    if not folders:
        sys.exit(f"no folder in {arguments.source} has a reference.safetensors")
    for folder in folders:
        slim(folder, arguments.destination / folder.name, arguments.keep, folder.name in arguments.longest)
    total = sum(f.stat().st_size for f in arguments.destination.rglob("*") if f.is_file())
    print(f"{len(folders)} folders, {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
