"""What went wrong, for people."""

import subprocess


class Problem(Exception):
    """Says what was wrong, and what to do."""


def run(*command, **options) -> str:
    """Runs a program to its end; what it printed."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True, **options)
    except FileNotFoundError:
        raise Problem(f"{command[0]} is not installed") from None
    except subprocess.CalledProcessError as failed:
        said = (failed.stderr or failed.stdout).strip().splitlines()[-5:]
        raise Problem(f"`{' '.join(map(str, command))}` failed: " + "\n".join(said)) from None
    return done.stdout
