"""Names of GGUF files: quantisation type, parts of a split file, and which file is an mmproj.

llama.cpp's conversion writes `MODEL-QUANT.gguf`, others `MODEL.QUANT.gguf`, in any case; files of
more than 50 GB come in parts; a vision tower is a file of its own, the mmproj, whose name need not
have the model's in it. A repository holds many of them, so one has to be chosen: the type that was
asked for, else Q4_K_M, Q4_0 or Q8_0, else the first by name of a type that is read here. Types that
are not read (IQ1_S, Unsloth's UD- mixes) are chosen only when somebody names them, and files of an
importance matrix never.

    chosen(["m-Q8_0.gguf", "m-Q4_K_M.gguf", "mmproj-f16.gguf"])     # "m-Q4_K_M.gguf"
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

# In this order, where nobody named one: the usual first, then what quantisation-aware training has.
PREFERRED = ("Q4_K_M", "Q4_0", "Q8_0")
# An mmproj is small, so the most exact comes first of those that every reader takes.
PRECISIONS = ("F16", "BF16", "Q8_0", "F32")
READ = {
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q6_K", "Q6_K_L", "IQ4_NL"),
    *(f"Q{bits}_K" for bits in (2, 3, 4, 5)),
    *(f"Q{bits}_K_{size}" for bits in (2, 3, 4, 5) for size in ("S", "M", "L", "XL")),
}
_QUANT = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d_[A-Z0-9]+(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|BF16|FP?16|FP?32))"
    r"(?=[-._/]|$)",
    re.IGNORECASE,
)
_PART = re.compile(r"(.*-)(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)
_MOST_PARTS = 1000


def is_gguf(file: str) -> bool:
    """Whether a file is a GGUF by its name."""
    return file.lower().endswith(".gguf")


def is_mmproj(file: str) -> bool:
    """Whether a GGUF holds a model's towers, by its name."""
    return is_gguf(file) and "mmproj" in PurePosixPath(file).name.lower()


def quantisation(file: str) -> str:
    """The quantisation type that a file's name tells, in capitals; "" where it tells none."""
    found = _QUANT.findall(file[: -len(".gguf")] if is_gguf(file) else file)
    return found[-1].upper().replace("FP", "F") if found else ""


def parts_of(file: str) -> list[str]:
    """The file asked for, and the other parts of one that was split, as llama.cpp names them."""
    match = _PART.fullmatch(file)
    if match is None or not 1 < int(match[3]) <= _MOST_PARTS:
        return [file]
    names = [
        f"{match[1]}{number:05}-of-{match[3]}{match[4]}" for number in range(1, int(match[3]) + 1)
    ]
    return [file, *(name for name in names if name != file)]


def models(files: Iterable[str]) -> list[str]:
    """The GGUF files that are models: no mmproj, no importance matrix; of a split one the first
    part, if all of it is there."""
    there = set(files)
    return sorted(
        file
        for file in there
        if is_gguf(file)
        and not is_mmproj(file)
        and "imatrix" not in file.lower()
        and (parts := parts_of(file)) == sorted(parts)
        and there.issuperset(parts)
    )


def chosen(files: Iterable[str], tag: str = "") -> str | None:
    """The model of a repository that a tag means: a file's name, with or without its ending, or a
    quantisation type, in any case. Without one the usual type that is there. None if there is none.
    """
    there = models(files)
    if not tag:
        return _usual(there)
    wanted = tag.lower()
    named = [file for file in there if wanted in (file.lower(), file.lower()[: -len(".gguf")])]
    typed = [file for file in there if quantisation(file) == tag.upper()]
    return min(named or typed, key=lambda file: (len(file), file), default=None)


def mmproj_of(files: Iterable[str], model: str) -> str | None:
    """The mmproj that goes with a model of the same repository: one of its folder, else of the
    repository's; by the order of `PRECISIONS`, then by name."""
    there = [file for file in files if is_mmproj(file)]
    folder = PurePosixPath(model).parent
    near = [file for file in there if PurePosixPath(file).parent == folder]
    top = [file for file in there if "/" not in file]
    return min(near or top, key=precision_order, default=None)


def precision_order(file: str) -> tuple[int, str]:
    """Sorts mmproj files by their precision as it is preferred, then by name."""
    precision = quantisation(file)
    rank = PRECISIONS.index(precision) if precision in PRECISIONS else len(PRECISIONS)
    return rank, file


def _usual(there: Sequence[str]) -> str | None:
    types = {file: quantisation(file) for file in there}
    for type in PREFERRED:
        found = [file for file in there if types[file] == type]
        if found:
            return min(found, key=lambda file: (len(file), file))
    read = [file for file in there if types[file] in READ or not types[file]]
    return next(iter(read), None)
