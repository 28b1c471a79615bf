#!/usr/bin/env python3
"""Predicted beside measured on a calibrated GPU, for models, batches and contexts that calibrating never saw.

  python3 bench/plan_fidelity/calibrated.py --fathom build/fathom                     one GPU
  python3 bench/plan_fidelity/calibrated.py --fathom build/fathom --gpus 2            two: a 70B, tp 2

Runs `fathom bench --json` (calibrate first) and prints each row's error, then medians.
"""
import argparse
import json
import statistics
import subprocess

ONE = [("deepseek-llm-7b", "1,8,32", "512,2048"), ("deepseek-llm-7b", "1,8", "8192"), ("deepseek-v2-lite", "1,8,32", "512,2048,8192"), ("r1-distill-qwen-1.5b", "1,8,32", "512,2048,8192")]
SEVERAL = [("r1-distill-llama-70b", "1,8,32", "512,2048")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fathom", default="build/fathom")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--generate", default="16")
    parser.add_argument("--chunk", default="512")
    args = parser.parse_args()
    errors = {"prefill_tokens_per_second": [], "decode_tokens_per_second": [], "memory_bytes": []}
    for model, batches, prompts in ONE if args.gpus == 1 else SEVERAL:
        line = [args.fathom, "bench", model, "--random-weights", "--device", "cuda", "--json", "--batch", batches, "--prompt", prompts, "--generate", args.generate, "--chunk", args.chunk]
        if args.gpus > 1:
            line += ["--gpus", str(args.gpus), "--tp", str(args.gpus)]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode != 0:
            print(f"{model}: {done.stderr.strip()}")
            continue
        report = json.loads(done.stdout)
        for row in report["rows"]:
            cells = []
            for figure, all_errors in errors.items():
                error = row[figure]["error"]
                if error is not None:
                    all_errors.append(abs(error))
                    cells.append(f"{row[figure]['measured']:>16.1f} / {row[figure]['predicted']:>16.1f} {100 * error:+6.1f} %")
            print(f"{model:22} batch {row['batch']:3} prompt {row['prompt']:5}  " + "  ".join(cells), "" if report["calibrated"] else " (not calibrated)", flush=True)
    for figure, all_errors in errors.items():
        if all_errors:
            print(f"{figure}: median {100 * statistics.median(all_errors):.1f} %, largest {100 * max(all_errors):.1f} %, {len(all_errors)} rows")


if __name__ == "__main__":
    main()
