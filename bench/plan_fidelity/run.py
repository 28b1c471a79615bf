#!/usr/bin/env python3
"""Holds `fathom plan --batch` against published measurements.

usage: run.py [--fathom build/fathom] [--measured ../shared/measured] [--by engine|hardware|source|model] [--goals]

Makes requests with to_requests.py of that folder, answers them, and prints for each kind of figure: rows, rows answered, median
and 90th percentile of |predicted - measured| / measured, the median of predicted / measured, and the share of rows that lie within
the answer's low .. high. --goals exits 1 when a median misses its goal. Without the folder there is nothing to do.
"""
import argparse, json, os, statistics, subprocess, sys

GOALS = {"tpot_ms": 0.10, "decode_tokens_per_second": 0.10, "ttft_ms": 0.20, "prefill_tokens_per_second": 0.20,
         "train_tokens_per_second_per_gpu": 0.12, "step_ms": 0.12, "memory": 0.06}


def get(answer, path):
    for key in path.split("."):
        answer = answer.get(key) if isinstance(answer, dict) else None
    return answer


def covered(answer, field, value):
    """Whether the figure's range holds the measurement; speeds are held against the range of their time."""
    times = {"decode_tokens_per_second": "tpot_ms", "prefill_tokens_per_second": "ttft_ms", "train_tokens_per_second_per_gpu": "step_ms"}
    name = field.split(".")[0]
    box = answer.get(times.get(name, name))
    predicted = get(answer, field)
    if not isinstance(box, dict) or "low" not in box or not predicted:
        return None
    ratio = predicted / value if name in times else value / predicted
    return box["low"] / box["value"] <= ratio <= box["high"] / box["value"]


def rows_of(requests, answers):
    by_id = {str(a.get("id")): a for a in answers}
    for request in requests:
        measured, answer = request["measured"], by_id.get(str(request["id"]), {})
        predicted = get(answer, measured["field"])
        model = request["model"] if isinstance(request["model"], str) else "config"
        row = dict(measured, model=model, answered=bool(predicted), field=measured["field"].split(".")[0])
        if predicted:
            row["ratio"] = predicted / measured["value"]
            row["covered"] = covered(answer, measured["field"], measured["value"])
        yield row


def table(rows, by):
    groups = {}
    for row in rows:
        groups.setdefault((row["kind"], row["field"]) + ((str(row[by])[-48:],) if by else ()), []).append(row)
    missed = []
    for key in sorted(groups):
        answered = [r for r in groups[key] if r["answered"]]
        errors = sorted(abs(r["ratio"] - 1) for r in answered)
        ranges = [r["covered"] for r in answered if r.get("covered") is not None]
        if not errors:
            print(f"{' '.join(key):80s} 0/{len(groups[key])}")
            continue
        median = statistics.median(errors)
        print(f"{' '.join(key):80s} {len(answered):4d}/{len(groups[key]):<4d} median {median:6.1%}  p90 {errors[int(0.9 * (len(errors) - 1))]:6.1%}"
              f"  ratio {statistics.median(r['ratio'] for r in answered):.2f}" + (f"  in range {sum(ranges) / len(ranges):.0%}" if ranges else ""))
        if not by and median > GOALS.get(key[1], 1):
            missed.append(" ".join(key))
    return missed


def main():
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fathom", default=os.path.join(root, "build", "fathom"))
    parser.add_argument("--measured", default=os.path.join(root, "..", "shared", "measured"))
    parser.add_argument("--by", choices=["engine", "hardware", "source", "model"])
    parser.add_argument("--goals", action="store_true")
    args = parser.parse_args()
    files = [os.path.join(args.measured, name) for name in ("published.json", "serving.json")]
    if not all(os.path.exists(f) for f in files):
        print("no measurements here; give their folder with --measured", file=sys.stderr)
        return 0
    lines = subprocess.run([sys.executable, os.path.join(args.measured, "to_requests.py"), *files], check=True, capture_output=True, text=True).stdout
    result = subprocess.run([args.fathom, "plan", "--batch", "-"], input=lines, capture_output=True, text=True)
    if result.returncode != 0:
        print(result.stderr, file=sys.stderr)
        return 2
    parse = lambda text: [json.loads(line) for line in text.splitlines() if line.strip()]
    missed = table(list(rows_of(parse(lines), parse(result.stdout))), args.by)
    if args.goals and missed:
        print("goals missed: " + "; ".join(missed), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
