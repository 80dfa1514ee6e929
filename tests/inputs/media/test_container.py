"""Lists of other files, in the shape of every format that has them: nothing of theirs is read."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest

from gemelo.errors import InputError
from gemelo.inputs.media.audio import read_audio
from gemelo.inputs.media.video import read_video
from tests.media import Pipe, recording, tone, write_video

SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
READERS = {"audio": read_audio, "video": read_video}


def lists(target: str) -> dict[str, str]:
    """What leads to a target, by file name."""
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp4">'
        f'<Representation id="1" bandwidth="1"><BaseURL>{target}</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>"
    )
    return {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1.0,\n{target}\n#EXT-X-ENDLIST\n",
        "list.ffconcat": f"ffconcat version 1.0\nfile {target}\n",
        "quoted.ffconcat": f"ffconcat version 1.0\nfile '{target}'\n",
        "list.mpd": dash,
        "sound.sdp": f"{SDP}m=audio 5004 RTP/AVP 0\n",
        "film.sdp": f"{SDP}m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    }


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the process is in, with a file of either kind that nobody may read."""
    write_video(tmp_path / "video.ts", [0, 0.2, 0.4], format="mpegts", codec="mpeg2video")
    (tmp_path / "audio.ts").write_bytes(recording([tone(440, 48000)], 48000, "mpegts", "aac"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server nobody should call."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        yield server


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("name", lists(""))
@pytest.mark.parametrize("place", ["relative", "absolute", "file", "network"])
def test_lists_of_other_files_are_refused(
    kind: str, name: str, place: str, secrets: Path, listener: socket.socket
) -> None:
    read: Callable[[Any], Any] = READERS[kind]
    secret = secrets / f"{kind}.ts"
    target = {
        "relative": secret.name,
        "absolute": str(secret),
        "file": f"file://{secret}",
        "network": f"http://127.0.0.1:{listener.getsockname()[1]}/{secret.name}",
    }[place]
    written = lists(target)[name].encode()
    for path in (secrets / name, secrets / "disguised.mp3"):
        path.write_bytes(written)
    sources = (name, secrets / name, "disguised.mp3", written, io.BytesIO(written), Pipe(written))
    for source in sources:
        with pytest.raises(InputError, match="cannot be read") as caught:
            read(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(TimeoutError):  # nobody called
        listener.accept()


def test_the_fence_is_what_keeps_them_out(secrets: Path) -> None:
    """By itself a secret can be read, and without the fence the library follows a list to it."""
    assert len(read_video("video.ts").frames) == 1
    assert read_audio("audio.ts").duration_s > 0.9
    (secrets / "list.m3u8").write_text(lists(str(secrets / "audio.ts"))["list.m3u8"])
    with av.open("list.m3u8") as container:
        assert container.format.name == "hls"
