"""The tree of files in ARCHITECTURE.md, written from the first line of every module.

python dev/tree.py            # writes it
python dev/tree.py --check    # exit code 1 where it is not what the files say
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "ARCHITECTURE.md"
_BEGIN, _END = "<!-- tree -->\n```\n", "```\n<!-- /tree -->"
_WIDE = 34  # where the openings begin


def tree(folder: Path, depth: int = 0) -> Iterator[str]:
    """A line for every module and folder, files after the folders that they explain."""
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_file(), path.name)):
        inside = path / "__init__.py"
        if path.is_dir() and inside.is_file():
            yield _line(f"{path.name}/", inside, depth)
            yield from tree(path, depth + 1)
        elif path.suffix == ".py" and path.stem != "__init__":
            yield _line(path.name, path, depth)


def _line(name: str, module: Path, depth: int) -> str:
    opening = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    start = "  " * depth + name
    return f"{start:{_WIDE}}{opening.splitlines()[0].rstrip('.')}".rstrip()


def written(page: str) -> str:
    """The page with today's tree."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}" + "\n".join(tree(ROOT / "gemelo")) + f"\n{_END}{after}"


def main() -> int:
    page = PAGE.read_text(encoding="utf-8")
    if written(page) == page:
        return 0
    if "--check" in sys.argv:
        print("error: the tree in ARCHITECTURE.md is out of date; python dev/tree.py writes it")
        return 1
    PAGE.write_text(written(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
