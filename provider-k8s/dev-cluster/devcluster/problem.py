"""Errors with a message for the user."""

import subprocess


class Problem(Exception):
    """An error whose message tells the user what to do."""


def run(*command, **options) -> str:
    """Runs a program to completion and returns its output."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True, **options)
    except FileNotFoundError:
        raise Problem(f"{command[0]} is not installed") from None
    except subprocess.CalledProcessError as failed:
        output = (failed.stderr or failed.stdout).strip().splitlines()[-5:]
        raise Problem(f"`{' '.join(map(str, command))}` failed: " + "\n".join(output)) from None
    return done.stdout
