#!/usr/bin/env python3
"""Writes what fit printed ("FIT kind names field value") into data/. usage: apply.py FIT.txt [DATA]"""
import json, os, sys


def put(record, field, value):
    *path, last = field.split(".")
    for key in path:
        record = record.setdefault(key, {})
    record[last] = value


def main():
    data = sys.argv[2] if len(sys.argv) > 2 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "data")
    files, changed = {}, set()
    for name in ["curves/devices.json", "curves/links.json"] + ["engines/" + f for f in sorted(os.listdir(os.path.join(data, "engines"))) if f.endswith(".json")]:
        files[name] = json.load(open(os.path.join(data, name)))
    for line in open(sys.argv[1]):
        if not line.startswith("FIT "):
            continue
        _, kind, names, field, value = line.split()[:5]
        for name in names.split(","):
            if kind == "engine":
                records = [(f, r) for f, r in files.items() if f.startswith("engines/") and r["name"] == name]
            else:
                file = f"curves/{kind}s.json"
                records = [(file, r) for r in files[file][kind + "s"] if r["id" if kind == "device" else "kind"] == name]
            for file, record in records:
                put(record, field, float(f"{float(value):.3g}"))
                changed.add(file)
    for name, record in ((name, files[name]) for name in sorted(changed)):
        with open(os.path.join(data, name), "w") as out:
            out.write(json.dumps(record, indent=1 if name.startswith("curves") else 2) + "\n")


if __name__ == "__main__":
    main()
