"""Message parts in every form that clients write, and one line for each that is wrong."""

from __future__ import annotations

import base64
import io
import os
import tracemalloc
from pathlib import Path
from random import Random
from typing import Any, cast
from urllib.parse import unquote_to_bytes

import pytest

from gemelo.errors import InputError, UnsupportedError
from gemelo.inputs.media import parts
from gemelo.inputs.media.parts import (
    MediaPart,
    TextPart,
    name_of,
    open_media,
    parse_content,
    video_parts,
)

BASE64 = base64.b64encode(b"bytes").decode()
URL = f"data:image/png;base64,{BASE64}"


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        ({"type": "text", "text": "words"}, TextPart("words")),
        ({"type": "image", "image": "a.png"}, MediaPart("image", "a.png")),
        ({"type": "image", "path": Path("a.png")}, MediaPart("image", Path("a.png"))),
        ({"type": "image", "url": "a.png"}, MediaPart("image", "a.png")),
        ({"type": "image", "image": b"raw"}, MediaPart("image", b"raw")),
        ({"type": "image", "url": URL}, MediaPart("image", b"bytes")),
        ({"type": "image", "base64": BASE64}, MediaPart("image", b"bytes")),
        ({"type": "image", "image": None, "url": "a"}, MediaPart("image", "a")),
        ({"type": "image_url", "image_url": {"url": URL}}, MediaPart("image", b"bytes")),
        ({"type": "image_url", "image_url": URL}, MediaPart("image", b"bytes")),
        ({"type": "audio", "audio": [0.0, 0.1]}, MediaPart("audio", [0.0, 0.1])),
        ({"type": "audio_url", "audio_url": {"url": "a.mp3"}}, MediaPart("audio", "a.mp3")),
        (
            {"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}},
            MediaPart("audio", b"bytes"),
        ),
        ({"type": "video", "path": "a.mp4"}, MediaPart("video", "a.mp4")),
        ({"type": "video_url", "video_url": {"url": "DATA:,a%20b"}}, MediaPart("video", b"a b")),
    ],
)
def test_forms(part: dict[str, Any], wanted: TextPart | MediaPart) -> None:
    assert parse_content([part]) == (wanted,)


def test_order_is_kept_and_a_text_is_one_part() -> None:
    assert parse_content("words") == (TextPart("words"),)
    parts = parse_content([{"type": "text", "text": "a"}, {"type": "image", "url": URL}] * 2)
    assert parts == (TextPart("a"), MediaPart("image", b"bytes")) * 2


def test_parts_stay_what_they_are() -> None:
    given = (TextPart("a"), MediaPart("image", "a.png"), MediaPart("audio", [0.0]))
    assert all(a is b for a, b in zip(parse_content(given), given, strict=True))
    assert parse_content([MediaPart("image", URL)]) == (MediaPart("image", b"bytes"),)
    with pytest.raises(UnsupportedError, match="part 0 names a file: send its content"):
        parse_content([MediaPart("image", Path("a.png"))], allow_paths=False)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "content is an object of type list: give a text, or a list"),
        (None, "content is None"),
        ({"type": "text"}, "content is an object of type dict"),
        (["words"], "part 0 is 'words'"),
        ([{"text": "words"}], "part 0 is an object of type dict"),
        ([{"type": "text"}], 'type text has no "text"'),
        ([{"type": "text", "text": 3}], 'type text has no "text"'),
        ([{"type": "smell"}], "type 'smell': use text, image, audio or video"),
        ([MediaPart(cast(Any, "smell"), "a")], "type 'smell': use text, image, audio or video"),
        ([MediaPart("image", "")], "part 0 has no picture: its source is empty"),
        ([{"type": "text_url"}], "type 'text_url': use text"),
        ([{"type": "image"}], "gives nothing for its picture: give one of image, path, url"),
        ([{"type": "video", "image": "a"}], "gives nothing for its video"),
        ([{"type": "image", "path": "a", "url": "b"}], "gives path and url for its picture"),
        ([{"type": "image_url", "image_url": {}}], "its url is empty"),
        ([{"type": "image_url", "image_url": {"url": ""}}], "its url is empty"),
        ([{"type": "input_audio", "input_audio": "x"}], "type input_audio needs"),
        ([{"type": "image", "base64": "*"}], "content that is not base64: \\*"),
        ([{"type": "image", "base64": 7}], "has 7 where base64 text is expected"),
        ([{"type": "image", "url": "data:image/png;base64"}], "without a comma"),
        ([{"type": "text", "text": "a"}, {"type": "image"}], "part 1 of type image"),
    ],
)
def test_what_says_too_little_or_too_much(content: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        parse_content(content)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize("url", ["http://x/a.png", "HTTPS://x/a", "s3://b/a", "ftp://x", "gs://b"])
def test_nothing_is_fetched(url: str) -> None:
    with pytest.raises(UnsupportedError, match="not fetched; download it and give its path"):
        parse_content([{"type": "image", "url": url}])
    with pytest.raises(UnsupportedError, match="not fetched"), open_media(url, "image"):
        pass


def test_paths_can_be_forbidden() -> None:
    for part in ({"path": "/etc/passwd"}, {"image": Path("/etc/passwd")}, {"url": "a.png"}):
        with pytest.raises(UnsupportedError, match="part 0 names a file: send its content"):
            parse_content([{"type": "image", **part}], allow_paths=False)
    with pytest.raises(UnsupportedError, match="send it as a data: URL"):
        parse_content([{"type": "image", "url": "http://x"}], allow_paths=False)
    with pytest.raises(UnsupportedError, match="file:///etc/passwd"):
        parse_content([{"type": "image", "url": "file:///etc/passwd"}], allow_paths=False)
    sent = parse_content([{"type": "image", "url": URL}], allow_paths=False)
    assert sent == (MediaPart("image", b"bytes"),)


def test_inline_content_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MAX_INLINE_BYTES", 30)
    parse_content([{"type": "image", "base64": "AAAA" * 10}])
    for url in (f"data:;base64,{'AAAA' * 11}", f"data:,{'x' * 31}"):
        with pytest.raises(InputError, match="the limit of a data: URL is 30; give a file"):
            parse_content([{"type": "image", "url": url}])


def test_opened_at_the_beginning(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"bytes")
    with path.open("rb") as borrowed:
        borrowed.read(3)
        for source in (path, str(path), b"bytes", URL, borrowed, io.BytesIO(b"bytes")):
            with open_media(source, "image") as file:
                assert file.read() == b"bytes"
        assert not borrowed.closed


def test_a_pipe_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def pipe(content: bytes) -> Any:
        out, into = os.pipe()
        os.write(into, content)
        os.close(into)
        return os.fdopen(out, "rb")

    with pipe(b"bytes") as source, open_media(source, "audio") as file:
        assert (file.read(), file.seek(1), file.read()) == (b"bytes", 1, b"ytes")
    monkeypatch.setattr(parts, "MAX_STREAM_BYTES", 4)
    for content, reason in ((b"bytes", "more than 4 bytes"), (b"", "has 0 bytes")):
        with (
            pipe(content) as source,
            pytest.raises(InputError, match=reason),
            open_media(source, "audio"),
        ):
            pass


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")
    cases: tuple[tuple[Any, str], ...] = (
        (tmp_path, "it is not a file"),
        (tmp_path / "fifo", "it is not a file"),
        (tmp_path / "none", "no such file"),
        (tmp_path / "empty", "is empty: it has 0 bytes, and no recording"),
        ("a\0b", "no such file"),
        ("x" * 5000, "cannot read x"),
        (b"", "the recording is empty"),
        (io.StringIO("text"), "opened in binary mode"),
    )
    for source, reason in cases:
        with pytest.raises(InputError, match=reason) as caught, open_media(source, "audio"):
            pass
        assert len(str(caught.value)) < 250


def test_names_in_messages() -> None:
    assert name_of(Path("a.png"), "image") == "a.png"
    assert name_of(URL, "image") == name_of(b"", "image") == "the picture"
    assert len(name_of("x" * 999, "image")) < 210


def test_a_video_is_its_frames_after_their_times_and_then_its_sound() -> None:
    parts = video_parts([("00:00", "first"), ("00:01", "second")], "sound")
    assert parts == (
        TextPart("00:00"),
        MediaPart("image", "first"),
        TextPart("00:01"),
        MediaPart("image", "second"),
        MediaPart("audio", "sound"),
    )
    assert video_parts([("00:00", "first")]) == parts[:2]


@pytest.mark.parametrize("piece_bytes", [3, 7, 1 << 20])
def test_escapes_of_a_data_url_are_those_of_the_standard_library(
    piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = Random(5)
    monkeypatch.setattr(parts, "PIECE_BYTES", piece_bytes)
    for _ in range(300):
        body = "".join(random.choice("%%%%4aAfg1é") for _ in range(random.randrange(1, 40)))
        with open_media(f"data:,{body}", "image") as file:
            assert file.read() == unquote_to_bytes(body)


def test_long_data_urls_take_memory_in_proportion() -> None:
    for url in ("data:,x" + "%41" * 1_000_000, "data:;base64," + "A " * 1_000_000):
        tracemalloc.start()
        with open_media(url, "image") as file:
            assert len(file.read()) in (1_000_001, 750_000)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 40_000_000
