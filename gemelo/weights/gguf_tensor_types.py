"""GGUF tensor types (ggml_type), those included that nothing here reads.

A number that a file gives a tensor is one of three things: a format with a kernel, a type that
exists and is not read, or a number that nobody ever gave away, which a damaged file has. The second
is no damage: it is named, with what to get instead.

    format_of(8).name                           # "q8_0"
    format_of(23)                               # UnsupportedError: iq4_xs ...
"""

from __future__ import annotations

from gemelo.errors import FileFormatError, UnsupportedError
from gemelo.kernels.quants import FORMATS, FORMATS_BY_ID, Format

_ANOTHER = "get the model as Q4_K_M or Q8_0, or convert the original"
_PLAIN = "these were weights rearranged for one processor; get the plain {} file"
UNREAD = {  # ggml's number: name, what it is and what to do
    4: ("q4_2", f"a format of 2023 that nothing reads any more; {_ANOTHER}"),
    5: ("q4_3", f"a format of 2023 that nothing reads any more; {_ANOTHER}"),
    9: ("q8_1", f"a format of activations, not of weights; {_ANOTHER}"),
    15: ("q8_k", f"a format of activations, not of weights; {_ANOTHER}"),
    24: ("i8", f"integers, which are no weights; {_ANOTHER}"),
    25: ("i16", f"integers, which are no weights; {_ANOTHER}"),
    26: ("i32", f"integers, which are no weights; {_ANOTHER}"),
    27: ("i64", f"integers, which are no weights; {_ANOTHER}"),
    28: ("f64", "double precision; convert the original to f32 or bf16"),
    31: ("q4_0_4_4", _PLAIN.format("Q4_0")),
    32: ("q4_0_4_8", _PLAIN.format("Q4_0")),
    33: ("q4_0_8_8", _PLAIN.format("Q4_0")),
    36: ("iq4_nl_4_4", _PLAIN.format("IQ4_NL")),
    37: ("iq4_nl_4_8", _PLAIN.format("IQ4_NL")),
    38: ("iq4_nl_8_8", _PLAIN.format("IQ4_NL")),
} | {
    number: (name, _ANOTHER)
    for number, name in (
        (16, "iq2_xxs"),
        (17, "iq2_xs"),
        (18, "iq3_xxs"),
        (19, "iq1_s"),
        (21, "iq3_s"),
        (22, "iq2_s"),
        (23, "iq4_xs"),
        (29, "iq1_m"),
        (34, "tq1_0"),
        (35, "tq2_0"),
        (39, "mxfp4"),
        (40, "nvfp4"),
        (41, "q1_0"),
        (42, "q2_0"),
    )
}
FORKS = range(97, 512)  # numbers that forks of llama.cpp took for formats of their own


def format_of(number: int) -> Format:
    """The format that a number means.

    Raises `UnsupportedError` for a type that exists and is not read here, `FileFormatError` for a
    number that was never given away; the file and the tensor are the caller's to name.
    """
    format = FORMATS_BY_ID.get(number)
    if format is not None:
        return format
    if number in UNREAD:
        name, cure = UNREAD[number]
        raise UnsupportedError(f"is {name}: {cure}; gemelo reads {', '.join(FORMATS)}")
    if number in FORKS:
        raise UnsupportedError(
            f"has the type {number}, which llama.cpp does not have and some of its forks do; "
            f"{_ANOTHER}"
        )
    raise FileFormatError(
        f"has the unknown type {number}, which no format was ever given: the file is damaged, or "
        "newer than gemelo"
    )
