"""Fuzzing: mutated files and values through every reader of gemelo, and what came out.

    python dev/fuzz.py                              # 200 cases of every reader
    python dev/fuzz.py gguf picture --cases 100000  # many of some
    python dev/fuzz.py picture --case 4711          # one case again, here, with its traceback
    python dev/fuzz.py --cases 500 --json           # the table for a program

A case is known by its reader and number: the same number gives the same file. Cases run in forked
workers with a limit of memory and of seconds, so that a crash or a hang is counted and the next
case goes on. Exit code 0: nothing but `ok` and `refused`; 1: something else came out.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from fuzzing.models import model_readers
from fuzzing.people import chat_readers, media_readers
from fuzzing.readers import Reader
from fuzzing.seeds import Seeds
from fuzzing.tokenizers import tokenizer_readers
from fuzzing.weights import weight_readers
from fuzzing.workers import OUTCOMES, Table, run

_SHOWN = 5  # bad cases of a reader in the table's tail


def main() -> int:
    arguments = _arguments()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="gemelo-fuzz-") as folder:
        known = readers(Seeds(Path(folder)))
        if unknown := sorted(set(arguments.readers) - set(known)):
            print(f"error: no reader {unknown[0]!r}; there are {', '.join(known)}", file=sys.stderr)
            return 2
        chosen = [known[name] for name in arguments.readers or known]
        if arguments.case is not None:
            return _again(chosen[0], arguments.case, Path(folder), arguments.keep)
        tables = {reader.name: _fuzz(reader, arguments) for reader in chosen}
    print(_json(tables) if arguments.json else _table(tables))
    return 0 if all(table.is_clean for table in tables.values()) else 1


def readers(seeds: Seeds) -> dict[str, Reader]:
    """All of them by name, those that run a model last."""
    found = [
        *weight_readers(seeds),
        *tokenizer_readers(seeds),
        *chat_readers(),
        *media_readers(seeds),
        *model_readers(seeds),
    ]
    return {reader.name: reader for reader in found}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("readers", nargs="*", help="which; all if none is named")
    parser.add_argument("--cases", type=int, default=200, help="of each reader (200)")
    parser.add_argument("--runs", type=int, help="of readers that run a model (as --cases)")
    parser.add_argument("--first", type=int, default=0, help="the first case's number (0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="workers at once")
    parser.add_argument("--case", type=int, help="run one case in this process")
    parser.add_argument(
        "--keep", type=Path, help="with --case: write what it is given to this file"
    )
    parser.add_argument("--json", action="store_true", help="the table as JSON")
    return parser.parse_args()


def _fuzz(reader: Reader, arguments: argparse.Namespace) -> Table:
    count = arguments.cases if not reader.runs or arguments.runs is None else arguments.runs
    numbers = range(arguments.first, arguments.first + count)

    def tell(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{reader.name}: {done} of {count} ", end="", file=sys.stderr, flush=True)

    table = run(reader.case, numbers, arguments.jobs, tell)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    return table


def _again(reader: Reader, number: int, folder: Path, keep: Path | None) -> int:
    """One case in this process: whatever it raises is shown."""
    made = reader.made(number)
    if keep is not None:
        keep.write_bytes(made if isinstance(made, bytes) else repr(made).encode())
    reader.take(made, folder)
    print("ok")
    return 0


def _table(tables: dict[str, Table]) -> str:
    wide = max(len(name) for name in tables)
    lines = [f"| {'reader':{wide}} | cases | {' | '.join(OUTCOMES)} | MiB | ms a case |"]
    lines.append("|" + "---|" * (len(OUTCOMES) + 4))
    for name, table in tables.items():
        count = sum(table.counts.values())
        cells = " | ".join(str(table.counts[outcome]) for outcome in OUTCOMES)
        speed = 1000 * table.seconds / max(1, count)
        lines.append(
            f"| {name:{wide}} | {count} | {cells} | {table.peak_bytes >> 20} | {speed:.1f} |"
        )
    for name, table in tables.items():
        for number, outcome, said in table.found[:_SHOWN]:
            lines.append(f"{name} --case {number}: {outcome}: {said}")
        if len(table.found) > _SHOWN:
            lines.append(f"{name}: {len(table.found) - _SHOWN} more")
    return "\n".join(lines)


def _json(tables: dict[str, Table]) -> str:
    return json.dumps(
        {
            name: {
                "counts": dict(table.counts),
                "found": table.found,
                "peak_bytes": table.peak_bytes,
                "seconds": table.seconds,
            }
            for name, table in tables.items()
        }
    )


if __name__ == "__main__":
    sys.exit(main())
