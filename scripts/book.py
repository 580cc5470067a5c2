#!/usr/bin/env python3
"""Builds the book of docs/ into target/book, and checks links in the book and in the repository's Markdown files.

    book.py MDBOOK

Links within the book must lead to a page, and a fragment to an element with that id. Other relative links must lead to
a file of the repository. Links to other sites are only checked for their form. The network is not used.
"""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPO = Path(__file__).resolve().parents[1]
BOOK = REPO / "target" / "book"
# Matches the path of a document in any file, such as in a comment.
NAMED = re.compile(r"\bdocs/[\w./-]+\.md\b")
MARKDOWN_LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^( *)```.*?^\1```|`[^`\n]*`", re.DOTALL | re.MULTILINE)


class Page(HTMLParser):
    """The links of a page, with their lines, and the ids that links can lead to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[tuple[int, str]] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value is not None:
                self.links.append((self.getpos()[0], value))
            elif name in ("id", "name") and value:
                self.ids.add(value)


def fault_of_external(link: str) -> str | None:
    """Returns why a link with a scheme is wrong, or None."""
    try:
        parts = urlsplit(link)
    except ValueError as error:
        return str(error)
    if parts.scheme not in ("http", "https"):
        return f"has the scheme {parts.scheme!r}"
    if not parts.hostname or " " in link:
        return "is not a valid address"
    return None


def fault_of_page(pages: dict[Path, Page], page: Path, link: str) -> str | None:
    """Returns why a link in a page of the book is broken, or None."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return fault_of_external(link)
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if target not in pages:
        within = target.is_relative_to(REPO) and target.exists()
        return None if within else "leads to no file"
    if parts.fragment and unquote(parts.fragment) not in pages[target].ids:
        return "has no target in that page"
    return None


def book(mdbook: str) -> list[str]:
    built = subprocess.run([mdbook, "build", str(REPO / "docs")], capture_output=True, text=True)
    output = built.stdout + built.stderr
    if built.returncode != 0 or re.search(r"\b(WARN|ERROR)\b", output):
        return [output]
    # 404.html is for a web server's root.
    paths = [path for path in sorted(BOOK.rglob("*.html")) if path.name != "404.html"]
    pages = {path.resolve(): Page(path) for path in paths}
    return [
        f"{path.relative_to(REPO)}:{line}: {link} {fault}"
        for path, page in pages.items()
        for line, link in page.links
        if (fault := fault_of_page(pages, path, link))
    ]


def files() -> list[str]:
    """Broken links in Markdown files, and mentions of missing documents in any file."""
    listed = subprocess.check_output(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=REPO)
    faults = []
    for name in sorted(filter(None, listed.decode().split("\0"))):
        path = REPO / name
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        named = {(document, REPO / document) for document in NAMED.findall(text)}
        if path.suffix == ".md":
            for link in MARKDOWN_LINK.findall(CODE.sub("", text)):
                parts = urlsplit(link)
                if parts.scheme or parts.netloc:
                    fault = fault_of_external(link)
                    faults += [f"{name}: {link} {fault}"] if fault else []
                elif parts.path:
                    named.add((link, path.parent / unquote(parts.path)))
        faults += [f"{name}: {link} leads to no file" for link, target in sorted(named) if not target.exists()]
    return faults


def main(mdbook: str) -> int:
    faults = book(mdbook) + files()
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
