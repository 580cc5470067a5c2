#!/usr/bin/env python3
"""Runs a test suite, then runs each failed test again, alone.

    run-tests.py SUITE RUNNER ARGUMENTS...      SUITE is any name, RUNNER one of nextest, pytest, node

A test that passes on its second try is flaky, which is a defect of the test or of the product. It is listed under
`flaky:` and in target/flaky.txt. The suite fails if a test fails twice. At most three tests of all suites are run
again; if more fail, the suite fails without a second try.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

MOST_FLAKY = 3
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
FLAKY = TARGET / "flaky.txt"


class Runner:
    """A test runner: its command, its report, and the command that runs one test of the report again."""

    # The exit code of a complete run with failed tests.
    tests_failed = 1

    def __init__(self, suite: str, arguments: list[str]):
        self.arguments = arguments
        self.report = (TARGET / f"junit-{suite}.xml").absolute()

    def stops_early(self) -> bool:
        """Whether the run may end at the first failure."""
        return False

    def command(self) -> list[str]:
        raise NotImplementedError

    def rerun(self, case: ElementTree.Element) -> list[str]:
        raise NotImplementedError


class Nextest(Runner):
    tests_failed = 100

    def __init__(self, suite: str, arguments: list[str]):
        super().__init__(suite, arguments)
        self.report = TARGET / "nextest" / "default" / "junit.xml"

    def command(self) -> list[str]:
        return [os.environ.get("CARGO", "cargo"), "nextest", "run", *self.arguments]

    def rerun(self, case: ElementTree.Element) -> list[str]:
        test = f"binary_id(={case.get('classname')}) & test(={case.get('name')})"
        # nextest runs the union of several filters, so remove the suite's filter.
        chosen = list(self.arguments)
        while "--filterset" in chosen:
            at = chosen.index("--filterset")
            del chosen[at : at + 2]
        return [os.environ.get("CARGO", "cargo"), "nextest", "run", *chosen, "--filterset", test]

    def stops_early(self) -> bool:
        return "--fail-fast" in self.arguments


class Pytest(Runner):
    def stops_early(self) -> bool:
        return any(argument.startswith(("-x", "--exitfirst", "--maxfail")) for argument in self.arguments)

    def command(self) -> list[str]:
        # Only this format of the report names each test's file.
        report = ["-o", "junit_family=xunit1", f"--junitxml={self.report}"]
        return [sys.executable, "-m", "pytest", *report, *self.arguments]

    def rerun(self, case: ElementTree.Element) -> list[str]:
        file, name = case.get("file"), case.get("name", "")
        if not file:
            # For a file that could not be collected, the name is the name of its module.
            return [sys.executable, "-m", "pytest", f"tests/e2e/{name.replace('.', '/')}.py"]
        # A method's class name is `module.Class`.
        classes = case.get("classname", "").removeprefix(Path(file).stem).strip(".").split(".")
        return [sys.executable, "-m", "pytest", "::".join([f"tests/e2e/{file}", *filter(None, classes), name])]


class Node(Runner):
    def command(self) -> list[str]:
        reports = ["--test-reporter=spec", "--test-reporter-destination=stdout"]
        reports += ["--test-reporter=junit", f"--test-reporter-destination={self.report}"]
        return ["node", "--test", *reports, *self.arguments]

    def rerun(self, case: ElementTree.Element) -> list[str]:
        pattern = f"^{re.escape(case.get('name', ''))}$"
        return ["node", "--test", f"--test-name-pattern={pattern}", *self.arguments]


RUNNERS = {"nextest": Nextest, "pytest": Pytest, "node": Node}


def failed(report: Path) -> Iterator[ElementTree.Element]:
    """The failed tests of the report, which lists a test twice if its teardown failed too."""
    seen = set()
    for case in ElementTree.parse(report).iter("testcase"):
        name = title(case)
        if name not in seen and (case.find("failure") is not None or case.find("error") is not None):
            seen.add(name)
            yield case


def title(case: ElementTree.Element) -> str:
    return f"{case.get('file') or case.get('classname') or ''} {case.get('name')}".strip()


def flaky_of_others(suite: str) -> list[str]:
    """The lines of flaky.txt from the other suites of this run."""
    lines = FLAKY.read_text(encoding="utf-8").splitlines() if FLAKY.exists() else []
    return [line for line in lines if not line.startswith(f"{suite}: ")]


def main(suite: str, runner: Runner) -> int:
    TARGET.mkdir(exist_ok=True)
    runner.report.unlink(missing_ok=True)
    known = flaky_of_others(suite)
    FLAKY.write_text("".join(f"{line}\n" for line in known), encoding="utf-8")
    code = subprocess.call(runner.command())
    if code == 0:
        return 0
    cases = list(failed(runner.report)) if runner.report.exists() else []
    if code != runner.tests_failed or runner.stops_early() or not cases:
        print(f"{suite}: failed, perhaps before all tests were run", file=sys.stderr)
        return code
    allowed = MOST_FLAKY - len(known)
    if len(cases) > allowed:
        print(f"{suite}: {len(cases)} tests failed; at most {allowed} are run again", file=sys.stderr)
        return code
    for case in cases:
        name = title(case)
        print(f"{suite}: run again, alone: {name}", flush=True)
        if subprocess.call(runner.rerun(case)) != 0:
            print(f"{suite}: failed twice: {name}", file=sys.stderr)
            return 1
        with FLAKY.open("a", encoding="utf-8") as file:
            file.write(f"{suite}: {name}\n")
    print("flaky:", *(f"  {title(case)}" for case in cases), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[2] not in RUNNERS:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], RUNNERS[sys.argv[2]](sys.argv[1], sys.argv[3:])))
