"""Small files of text: what is no file, too large, or not what its name says is one clear line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gemelo.errors import FileFormatError, InputError
from gemelo.text_files import read_bytes, read_object, read_text

pytestmark = pytest.mark.timeout(20)  # a pipe that is waited for


def test_a_mark_of_byte_order_is_no_part_of_the_text(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n')
    assert read_object(file) == {"a": 1}


def test_toml_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "size.toml"
    file.write_bytes(b'\xef\xbb\xbfname = "half"\r\n')
    assert read_object(file) == {"name": "half"}


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "config.json"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="not a regular file"):
        read_bytes(pipe, 100)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/tty", "/"])
def test_a_device_or_a_folder_is_not_read(path: str) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_bytes(Path(path), 100)


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with file.open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(FileFormatError, match=r"larger than 4,194,304 bytes"):
        read_object(file)


def test_the_limit_itself_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "prompt"
    file.write_bytes(b"x" * 100)
    assert read_bytes(file, 100) == b"x" * 100


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b"[1]", "expected a JSON object"),
        ("a.json", b"{", "not readable as JSON"),
        ("a.json", b"[" * 200_000, "not readable as JSON"),
        ("a.json", b'{"a": ' + b"9" * 5000 + b"}", "not readable as JSON"),
        ("a.toml", b"a = ", "not readable as TOML"),
        ("a.json", b"\xff\xfe{\x00", "not UTF-8: byte 0xff at position 0"),
    ],
)
def test_what_it_is_not_is_said(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileFormatError, match=said):
        read_object(tmp_path / name)


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(InputError, match="cannot read"):
            read_text(tmp_path / name, 100)
