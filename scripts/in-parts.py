#!/usr/bin/env python3
"""Runs make targets in order. Prints their names and the duration of the last run first, and a table of durations at
the end.

    in-parts.py NAME TARGET...

NAME is the make target that consists of the others. Its durations are kept under this name in the user's cache, so that
a new checkout has them.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kernelmux"
FLAKY = Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "flaky.txt"


def minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def cpu_seconds() -> float:
    """CPU time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(name: str, targets: list[str]) -> int:
    times = CACHE / f"times-{name}.json"
    try:
        last = json.loads(times.read_text(encoding="utf-8"))
        known = f"took {minutes(sum(last.values()))} minutes last time"
    except (OSError, ValueError, AttributeError, TypeError):
        known = "has not run on this machine yet; on two cores allow for half an hour, and as much for the first build"
    print(f"make {name}: {', '.join(targets)}; {known}", flush=True)
    FLAKY.unlink(missing_ok=True)
    taken = {}
    rows = [f"| {'Part':<16} | Minutes | CPU minutes |", f"|{'-' * 18}|{'-' * 9}|{'-' * 13}|"]
    for target in targets:
        begun, cpu_begun = time.monotonic(), cpu_seconds()
        code = subprocess.call([os.environ.get("MAKE", "make"), "--no-print-directory", target])
        if code != 0:
            print(f"make {name}: {target} failed", file=sys.stderr)
            return code
        taken[target] = time.monotonic() - begun
        rows.append(f"| {target:<16} | {minutes(taken[target]):>7} | {minutes(cpu_seconds() - cpu_begun):>11} |")
    CACHE.mkdir(parents=True, exist_ok=True)
    times.write_text(json.dumps(taken), encoding="utf-8")
    print(*rows, f"| {'all':<16} | {minutes(sum(taken.values())):>7} | {minutes(cpu_seconds()):>11} |", sep="\n")
    flaky = FLAKY.read_text(encoding="utf-8") if FLAKY.exists() else ""
    if flaky:
        print("flaky:", *(f"  {line}" for line in flaky.splitlines()), sep="\n")
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
