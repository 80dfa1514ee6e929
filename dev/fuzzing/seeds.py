"""Seeds: small honest files of every kind that gemelo reads, made anew for each run.

Models are random and tiny, but whole: a Gemma 3 with a vision tower, a Gemma 3n with both towers,
their GGUF and mmproj files. Pictures, sound and video come from Pillow and PyAV. Everything is
seeded, so that the same case number means the same bytes.

    seeds = Seeds(Path(folder));  seeds.gguf;  seeds.pictures
"""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.open import open_source
from gemelo.config import Gemma3Config, Gemma3nConfig, VisionConfig
from gemelo.config.parameters import parameter_shapes
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.kernels.quants import FORMATS, Packed
from gemelo.weights import names
from gemelo.weights.safetensors import TensorToWrite, write_safetensors

SEES = Gemma3Config(
    vocab_size=512,
    hidden_size=96,
    intermediate_size=160,
    num_hidden_layers=7,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    query_pre_attn_scalar=32,
    sliding_window=8,
    max_position_embeddings=1024,
    vision=VisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=4,
    ),
    mm_tokens_per_image=16,
    boi_token_index=90,
    eoi_token_index=91,
    image_token_index=92,
    eos_token_id=(1, 106),
)
HEARS = Gemma3nConfig(
    vocab_size=512,
    vocab_size_per_layer_input=480,
    hidden_size=64,
    intermediate_size=(96,) * 12,
    num_hidden_layers=12,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    sliding_window=6,
    max_position_embeddings=1024,
    num_kv_shared_layers=5,
    hidden_size_per_layer_input=32,
    laurel_rank=32,
    activation_sparsity_pattern=(0.95,) * 4 + (0.0,) * 8,
    eos_token_id=(1, 106),
    vision_config={
        "model_type": "gemma3n_vision",
        "architecture": "mobilenetv5_300m_enc",
        "hidden_size": 2048,
        "vocab_size": 16,
        "vocab_offset": 480,
        "model_args": {"channel_multiplier": 0.0625, "msfa_output_resolution": 4},
    },
    audio_config={
        "model_type": "gemma3n_audio",
        "vocab_size": 16,
        "vocab_offset": 496,
        "hidden_size": 32,
        "conf_num_attention_heads": 4,
        "conf_num_hidden_layers": 2,
        "conf_attention_chunk_size": 4,
        "conf_attention_context_left": 5,
        "sscp_conv_channel_size": [8, 4],
    },
    vision_soft_tokens_per_image=16,
    audio_soft_tokens_per_image=12,
    boi_token_id=90,
    eoi_token_id=480,
    image_token_id=481,
    boa_token_id=93,
    eoa_token_id=496,
    audio_token_id=497,
)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message.role }}\n"
    "{% if message.content is string %}{{ message.content | trim }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<start_of_image>"
    "{% elif part.type == 'audio' %}<audio_soft_token>{% else %}{{ part.text | trim }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is a llama?"}]},
    {"role": "assistant", "content": "An animal."},
    {"role": "user", "content": "<end_of_turn> And 🦙?\r\n"},
]
SIZE = {"name": "small", "ffn_widths": [64] * 11, "skipped_layers": [3]}


def vocabulary() -> dict[str, Any]:
    """GGUF key-values of 512 pieces with Gemma's special ids."""
    named = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>", 107: "\n", 108: "\n\n"}
    named |= {90: "<start_of_image>", 91: "<end_of_image>", 92: "<image_soft_token>"}
    named |= {93: "<start_of_audio>", 94: "<end_of_audio>", 95: "<audio_soft_token>"}
    named |= {105: "<start_of_turn>", 106: "<end_of_turn>"}
    pieces = [named.get(number, f"<unused{number}>") for number in range(109)]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["th", "▁th", "▁the", "he", "in", "an", "er", "▁a", "▁", *map(chr, range(33, 127))]
    words += [a + b for a in "bcdfghjklmnp" for b in "aeiou"]
    pieces += list(dict.fromkeys(words))[: 512 - len(pieces)]
    types = [3] * 107 + [4, 4] + [6] * 256 + [1] * (len(pieces) - 365)
    scores = [-float(number) if kind == 1 else 0.0 for number, kind in enumerate(types)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": TEMPLATE,
    }


class Seeds:
    """Files in a folder, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # ---- models ----------------------------------------------------------------------------------

    @cached_property
    def sees(self) -> Path:
        """A directory of a Gemma 3 with a vision tower."""
        return self._directory("sees", SEES, "multimodal")

    @cached_property
    def hears(self) -> Path:
        """A directory of a Gemma 3n with a vision tower and an audio encoder."""
        return self._directory("hears", HEARS, "multimodal-3n")

    @cached_property
    def reads(self) -> Path:
        """A directory of a Gemma 3 for text, in several shards."""
        folder = self.folder / "reads"
        folder.mkdir()
        source = open_source(self.gguf)
        write_safetensors(
            folder,
            [
                (names.to_hf(name, "text"), shape, FORMATS["f32"], lambda n=name: source.tensor(n))
                for name, shape in source.shapes.items()
            ],
            max_shard_bytes=400_000,
        )
        (folder / "config.json").write_text(json.dumps(source.config.to_hf()))
        return folder

    @cached_property
    def gguf(self) -> Path:
        return self._converted(self.sees, "sees.gguf", "q8_0")

    @cached_property
    def gguf_3n(self) -> Path:
        return self._converted(self.hears, "hears.gguf", "q8_0")

    @cached_property
    def mmproj(self) -> Path:
        return self._mmproj(self.sees)

    @cached_property
    def mmproj_3n(self) -> Path:
        return self._mmproj(self.hears)

    def _directory(
        self, folder_name: str, config: Gemma3Config | Gemma3nConfig, layout: str
    ) -> Path:
        folder = self.folder / folder_name
        folder.mkdir()
        generator = np.random.default_rng(0)
        tensors: list[TensorToWrite] = []
        for canonical, shape in parameter_shapes(config).items():
            values = generator.normal(0, 0.1, shape)
            if len(shape) == 1:
                values = generator.uniform(0.5, 1.5, shape)
            weight = Packed.of(values.astype(np.float32))
            name = names.to_hf(canonical, layout)
            tensors.append((name, shape, weight.format, lambda weight=weight: weight))  # type: ignore[misc]
        write_safetensors(folder, tensors)
        (folder / "config.json").write_text(json.dumps(config.to_hf()))
        (folder / "tokenizer.model").write_bytes(
            Tokenizer.from_gguf(vocabulary()).to_sentencepiece()
        )
        marker = "<start_of_image>" if config is SEES else "<image_soft_token>"
        (folder / "chat_template.jinja").write_text(TEMPLATE.replace("<start_of_image>", marker))
        if config is SEES:
            (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
        return folder

    def _converted(self, source: Path, name: str, format: Any) -> Path:
        target = self.folder / name
        convert(source, target, format, text_only=True)
        return target

    def _mmproj(self, source: Path) -> Path:
        target = self.folder / f"{source.name}-mmproj.gguf"
        convert(source, target, "f32", mmproj=True)
        return target

    # ---- people's files --------------------------------------------------------------------------

    @cached_property
    def pictures(self) -> list[bytes]:
        return list(_pictures())

    @cached_property
    def sounds(self) -> list[bytes]:
        return [_wave(1, 2), _wave(2, 2), _wave(2, 4), *filter(None, map(_sound, SOUNDS))]

    @cached_property
    def videos(self) -> list[bytes]:
        return [video for video in map(_video, VIDEOS) if video]


PREPROCESSOR = {
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 256,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_seq_length": 16,
    "size": {"height": 32, "width": 32},
    "do_resize": True,
    "resample": 2,
    "rescale_factor": 1 / 255,
}

# ---- pictures ------------------------------------------------------------------------------------


def _pictures() -> Iterator[bytes]:
    ramp = np.arange(24 * 20, dtype=np.uint32).reshape(20, 24)
    colour = np.stack([ramp % 256, ramp * 3 % 256, ramp * 7 % 256], -1).astype(np.uint8)
    rgb = Image.fromarray(colour)
    for format, modes, more in (
        ("PNG", ("RGB", "RGBA", "LA", "P", "1", "I;16"), {}),
        ("JPEG", ("RGB", "L", "CMYK"), {}),
        ("JPEG", ("RGB",), {"progressive": True}),
        ("WEBP", ("RGB", "RGBA"), {}),
        ("WEBP", ("RGB",), {"lossless": True}),
        ("GIF", ("P",), {}),
        ("BMP", ("RGB", "P"), {}),
        ("TIFF", ("RGB", "F", "I", "CMYK"), {}),
        ("TIFF", ("RGB",), {"compression": "tiff_lzw"}),
        ("TIFF", ("L",), {"compression": "jpeg"}),
        ("PPM", ("RGB",), {}),
        ("TGA", ("RGBA",), {}),
        ("ICO", ("RGBA",), {}),
        ("AVIF", ("RGB",), {}),
        ("JPEG2000", ("RGB",), {}),
    ):
        for mode in modes:
            image = Image.fromarray((ramp * 130).astype(np.uint16)) if mode == "I;16" else rgb
            try:
                held = io.BytesIO()
                made = image if mode == "I;16" else image.convert(mode)
                made.save(held, format, **more)
            except (OSError, KeyError, ValueError):
                continue  # this build of Pillow cannot write it
            yield held.getvalue()
    held = io.BytesIO()
    rgb.save(held, "GIF", save_all=True, append_images=[rgb.rotate(90)])
    yield held.getvalue()
    exif = Image.Exif()
    exif[0x0112] = 6
    held = io.BytesIO()
    rgb.save(held, "JPEG", exif=exif)
    yield held.getvalue()


# ---- sound and video -----------------------------------------------------------------------------

SOUNDS = (
    # container, codec, layout
    ("wav", "pcm_f32le", "stereo"),
    ("wav", "adpcm_ms", "mono"),
    ("flac", "flac", "stereo"),
    ("flac", "flac", "7.1"),
    ("mp3", "libmp3lame", "mono"),
    ("adts", "aac", "stereo"),
    ("adts", "aac", "7.1"),
    ("ipod", "aac", "stereo"),
    ("ipod", "alac", "mono"),
    ("ogg", "vorbis", "stereo"),
    ("ogg", "libopus", "mono"),
    ("matroska", "libopus", "stereo"),
    ("matroska", "ac3", "stereo"),
    ("mpegts", "mp2", "stereo"),
    ("aiff", "pcm_s16be", "mono"),
    ("au", "pcm_mulaw", "mono"),
    ("asf", "wmav2", "mono"),
    ("avi", "pcm_s16le", "mono"),
)
VIDEOS = (
    ("mp4", "mpeg4"),
    ("mp4", "libx264"),
    ("matroska", "mpeg4"),
    ("webm", "libvpx"),
    ("mpegts", "mpeg2video"),
    ("avi", "mjpeg"),
    ("mov", "png"),
    ("flv", "flv"),
)


_RATES = {"libopus": 48000, "ac3": 48000, "wmav2": 44100}


def _wave(channels: int, width: int) -> bytes:
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(16000)
        file.writeframes(np.random.default_rng(0).bytes(3200 * channels * width))
    return held.getvalue()


def _sound(kind: tuple[str, str, str]) -> bytes:
    container, codec, layout = kind
    try:
        held = io.BytesIO()
        with av.open(held, "w", format=container, options=_EXACT) as out:
            stream = out.add_stream(codec, rate=_RATES.get(codec, 16000), options={"strict": "-2"})
            stream.layout = layout
            graph = av.AudioResampler(stream.format, layout, stream.rate, stream.frame_size or 1024)
            tone = np.sin(np.arange(stream.rate // 5) * 0.1).astype(np.float32) * 0.5
            frame = av.AudioFrame.from_ndarray(tone[None], "fltp", "mono")
            frame.sample_rate = stream.rate
            for piece in [*graph.resample(frame), *graph.resample(None), None]:
                out.mux(stream.encode(piece))
        return held.getvalue()
    except (av.FFmpegError, ValueError, OSError):
        return b""  # this build of FFmpeg cannot write it


def _video(kind: tuple[str, str]) -> bytes:
    container, codec = kind
    try:
        held = io.BytesIO()
        with av.open(held, "w", format=container, options=_EXACT) as out:
            stream = out.add_stream(codec, rate=10)
            stream.width, stream.height = 32, 24
            stream.pix_fmt = {"mjpeg": "yuvj420p", "png": "rgb24"}.get(codec, "yuv420p")
            for index in range(12):
                colour = np.full((24, 32, 3), index * 20, np.uint8)
                frame = av.VideoFrame.from_ndarray(colour, "rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 10)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        return held.getvalue()
    except (av.FFmpegError, ValueError, OSError):
        return b""


_EXACT = {"fflags": "+bitexact"}
