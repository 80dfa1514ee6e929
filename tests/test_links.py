"""Links of the pages: every relative one leads to a file, every #anchor to a heading."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
        *(ROOT / name for name in ("CHANGELOG.md", "benchmarks/README.md", "dev/LOG.md")),
        ROOT / "gemelo" / "kernels" / "csrc" / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "examples").glob("*.md"),
    ]
)
ALLOWED = (  # outside: papers, and pages that the program itself sends users to
    "https://arxiv.org/",
    "https://huggingface.co/",
    "https://ai.google.dev/gemma/",
)
_KEPT = set(string.ascii_lowercase + string.digits + "_- ")


def prose(page: str) -> str:
    """A page without its blocks and pieces of code, whose brackets are no links."""
    page = re.sub(r"^```.*?^```", "", page, flags=re.S | re.M)
    page = re.sub(r"^(?: {4}|\t).*$", "", page, flags=re.M)
    return re.sub(r"`[^`]*`", "`", page)


def links(page: str) -> Iterator[str]:
    """The targets of `[text](target)`, `![picture](target)` and `[name]: target`."""
    text = prose(page)
    yield from re.findall(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)", text)
    yield from re.findall(r"^\[[^\]]+\]:\s*(\S+)", text, re.M)
    yield from re.findall(r"https?://[^\s)>\]\"']+", text)
    yield from re.findall(r"(?:src|href)=\"([^\"]+)\"", text)


def anchors(page: str) -> set[str]:
    """Where #anchors lead: headings in lower case, dashes for spaces, numbered if twice."""
    found: dict[str, int] = {}
    names = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", page))
    text = re.sub(r"^```.*?^```", "", page, flags=re.S | re.M)
    for title in re.findall(r"^#{1,6} +(.+?) *#*$", text, re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").lower()
        kept = "".join(letter for letter in plain if letter in _KEPT or letter.isalpha())
        name = kept.replace(" ", "-")
        names.add(name if name not in found else f"{name}-{found[name]}")
        found[name] = found.get(name, 0) + 1
    return names


def broken(page: str, path: Path) -> list[str]:
    """What does not lead anywhere, or leads outside."""
    out = []
    for link in links(page):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z][a-z+.-]*:", link) or link.startswith("//"):
            if not link.startswith(ALLOWED):
                out.append(f"{link}: leads outside")
            continue
        place = (path.parent / unquote(target)).resolve() if target else path
        inside = not target.startswith("/") and place.is_relative_to(ROOT)
        if place != path and not (inside and place.exists()):
            out.append(f"{link}: no such file")
        elif anchor and place.suffix == ".md":
            text = page if place == path else place.read_text(encoding="utf-8")
            if anchor not in anchors(text):
                out.append(f"{link}: no such heading")
    return out


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    assert broken(path.read_text(encoding="utf-8"), path) == []


def test_what_leads_nowhere_is_found() -> None:
    page = (
        "# A `title` (here)\n## Twice\n## Twice\n[a](#a-title-here) [b](#twice-1) [c](cli.md)\n"
        "[d](gone.md) [e](#gone) [f](cli.md#gone) [g](/etc/hosts) [h](https://example.org/x)\n"
        "`[i](gone.md)`\n\n    [j](gone.md)\n\n![k](gone.svg)\n"
    )
    found = broken(page, ROOT / "docs" / "page.md")
    wrong = ["gone.md", "#gone", "cli.md#gone", "/etc/hosts", "https://example.org/x", "gone.svg"]
    assert {one.partition(": ")[0] for one in found} == set(wrong)
