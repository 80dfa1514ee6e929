"""The types of the native extension: writes gemelo/kernels/_native.pyi with nanobind's stubgen.

What it takes is said in csrc/runtime/bindings.cpp; mypy and editors read it in the stub.

python dev/stub.py            # writes it, from the extension that is built
python dev/stub.py --check    # exit code 1 where it is not what the extension says
"""

from __future__ import annotations

import sys
from pathlib import Path

from nanobind.stubgen import StubGen

from gemelo.kernels import _native

STUB = Path(__file__).parent.parent / "gemelo" / "kernels" / "_native.pyi"


def stub() -> str:
    """The stub of the extension as it was built."""
    generator = StubGen(_native)
    generator.put(_native)
    return str(generator.get())


def main() -> int:
    if "--check" in sys.argv[1:]:
        return STUB.read_text(encoding="utf-8") != stub()
    STUB.write_text(stub(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
