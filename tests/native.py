"""A skip mark of pytest for tests of the native kernels, and a run that says where it was used.

A test module that skips whole looks like one that passed. So there is one mark; the end of a run
counts what it skipped; and where GEMELO_NATIVE_REQUIRED is set, as in CI, a run without the kernels
is an error before its first test.

    from tests.native import needs_native
    pytestmark = needs_native
"""

from __future__ import annotations

import os

import pytest

from gemelo.kernels import native

REQUIRED = "GEMELO_NATIVE_REQUIRED"
WHY_NOT = (
    "the native kernels were not built"
    if native.extension is None
    else f"GEMELO_ISA={native.REFERENCE} leaves the native kernels out"
)
needs_native = pytest.mark.skipif(native.module is None, reason=WHY_NOT)


def refuse_if_required() -> None:
    """UsageError, which ends the run, if the kernels are required and missing."""
    if os.environ.get(REQUIRED) and native.module is None:
        raise pytest.UsageError(
            f"{REQUIRED} is set, but {WHY_NOT}: build and use them, or unset the variable"
        )


def count_skipped(reporter: pytest.TerminalReporter) -> None:
    """One line at the end of a run that skipped tests for want of the kernels."""
    skipped = reporter.stats.get("skipped", [])
    count = sum(WHY_NOT in str(report.longrepr) for report in skipped)
    if count:
        reporter.write_line(f"{count} tests skipped: {WHY_NOT}", yellow=True)
