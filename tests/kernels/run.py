"""The numerical tests under other instruction sets and numbers of threads: what is right must not be right on one machine only.

    make test-kernels                                  all six: default, avx2, avx512, with one thread and two
    python tests/kernels/run.py avx2 --threads 2       some

torch picks its own kernels by ATEN_CPU_CAPABILITY; its matrix products are MKL's and oneDNN's, which are told by names of
their own. A line a combination; what failed is printed, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = {
    "default": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "DNNL_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512"},
}
"""Name -> environment. The last one leaves the libraries what this processor has, AMX too."""
# Where numbers are computed. Of the verbs: those whose files hold numbers that other tests compute again. Not the launchers of
# tests/equivalence: their ranks compute what those of test_ranks do, and they take as long as all of core and modeling.
TESTS = [
    *(f"tests/{room}" for room in ("core", "modeling", "training", "scoring", "analysis", "examples")),
    *(f"tests/equivalence/test_{name}.py" for name in ("plain_training", "golden", "ranks", "splits")),
    *(f"tests/pipeline/test_{verb}.py" for verb in ("evaluate", "dynamics", "train")),
]


def lacks(kernels: str) -> bool:
    """Whether this processor cannot run them; torch takes the name without asking, and dies of the first instruction."""
    import torch

    has = {"avx2": torch.cpu._is_avx2_supported, "avx512": torch.cpu._is_avx512_supported}
    return kernels in has and not has[kernels]()


def run(kernels: str, threads: int) -> bool:
    """Run the tests under one combination, print its line and what failed. True if nothing did."""
    env = {**os.environ, **KERNELS[kernels], "OMP_NUM_THREADS": str(threads)}
    # Processes times threads are the cores there are: two processes of two threads each on two cores wait for each other, and
    # took three times as long as one.
    processes = max(1, (os.cpu_count() or 1) // threads)
    spread = ("-n", str(processes), "--dist", "loadscope", "--no-loadscope-reorder")
    command = [sys.executable, "-m", "pytest", *spread, "-m", "not slow", "--tb=short", "--color=no", *TESTS]
    start = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        print(done.stdout)
    last = (done.stdout.splitlines() or ["no output"])[-1].strip("= ")
    word = "FAILED" if done.returncode else "passed"
    print(f"{word}  {kernels:8} {threads} thread(s) {time.monotonic() - start:5.0f} s  {last}", flush=True)
    return not done.returncode


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", metavar="NAME", help=f"of {', '.join(KERNELS)}; all if none is named")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args(argv)
    if unknown := set(args.kernels) - set(KERNELS):
        parser.error(f"no kernels are named {', '.join(sorted(unknown))}")
    good = True
    for kernels in args.kernels or KERNELS:
        if lacks(kernels):
            print(f"LEFT OUT  {kernels}: this processor has no such instructions", flush=True)
            continue
        for threads in args.threads:
            good &= run(kernels, threads)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
