"""Files made to hurt: refused by what their headers say, in little time and memory, with one line."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from zipvl_serving.errors import InputError
from zipvl_serving.vision.images import load_image


def save(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*extra: bytes, width: int = 8, height: int = 8, pixels: bytes | None = None) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = bytes((1 + 3 * width) * height) if pixels is None else pixels
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body


@cache
def zeros(count: int) -> bytes:
    """Zeros, compressed a thousand times."""
    return zlib.compress(bytes(count))


def gif(screen: int, frame: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", screen, screen, 0x80, 0, 0) + bytes(6)
    return head + b"," + struct.pack("<HHHHB", 0, 0, frame, frame, 0) + b"\x02\x02\x4c\x01\x00;"


def animation(frames: int) -> bytes:
    first, *rest = [Image.new("P", (16, 16), i % 255) for i in range(frames)]
    return save(first, "GIF", save_all=True, append_images=rest, optimize=False)


def jpeg_of(width: int, height: int) -> bytes:
    """A small JPEG whose header says otherwise."""
    data = bytearray(save(Image.new("RGB", (64, 64)), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_of(width: int, height: int) -> bytes:
    """A small lossless WebP whose header says otherwise."""
    data = bytearray(save(Image.new("RGB", (8, 8)), "WEBP", lossless=True))
    at = data.index(b"VP8L") + 9
    data[at : at + 4] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    return bytes(data)


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = save(Image.new("L", (1024, 1024)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * count + data[-2:]


def tiff_of_tiles(edge: int) -> bytes:
    """16 x 16 pixels, in one tile that is much larger."""
    data = zlib.compress(bytes(256))
    data += bytes(len(data) % 2)
    longs = [(256, 16), (257, 16), (322, edge), (323, edge), (324, 8), (325, len(data))]
    shorts = [(258, 8), (259, 8), (262, 1), (277, 1)]  # bits, Deflate, black is zero, one sample
    tags = sorted([(tag, 4, value) for tag, value in longs] + [(tag, 3, value) for tag, value in shorts])
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "100 megapixels": (lambda: save(Image.new("1", (10_000, 10_000)), "PNG"), "10000 x 10000 pixels, more than"),
    "100 megapixels of JPEG": (lambda: jpeg_of(10_000, 10_000), "10000 x 10000 pixels, more than the limit of 64"),
    "100 megapixels of WebP": (lambda: webp_of(10_000, 10_000), "10000 x 10000 pixels, more than the limit of 64"),
    "100 megapixels of TIFF": (lambda: save(Image.new("1", (10_000, 10_000)), "TIFF", compression="group4"), "too l"),
    "100 megapixels of PPM": (lambda: b"P6\n10000 10000\n255\n", "10000 x 10000 pixels, more than"),
    "4 gigapixels": (lambda: png(width=65_535, height=65_535, pixels=b""), "the image: too large: "),
    "a GIF's frame beyond its screen": (lambda: gif(1, 10_000), "10000 x 10000 pixels, more than"),
    "a TIFF's tile beyond its image": (lambda: tiff_of_tiles(40_000), "40000 x 40000 pixels, more than"),
    "scans without end": (lambda: jpeg_of_scans(20_000), "a JPEG of 200.. scans, more than the limit of 100"),
    "a zTXt chunk of 100 MB": (
        lambda: png(chunk(b"zTXt", b"k\0\0" + zeros(100 << 20))),
        "the image is truncated or broken",
    ),
    "an iTXt chunk of 100 MB": (lambda: png(chunk(b"iTXt", b"k\0\1\0\0\0" + zeros(100 << 20))), "truncated or broken"),
    "an iCCP chunk of 100 MB": (lambda: png(chunk(b"iCCP", b"k\0\0" + zeros(100 << 20))), "truncated or broken"),
    "hundreds of zTXt chunks": (
        lambda: png(*[chunk(b"zTXt", b"k\0\0" + zeros(1_000_000))] * 200),
        "truncated or broken",
    ),
    "no pixels at all": (lambda: png(width=0, height=0), "not an image in a known format"),
    "too few pixels": (lambda: png(width=900, height=900, pixels=b"abc"), "truncated or broken"),
    "half a JPEG": (lambda: save(Image.effect_noise((300, 300), 50), "JPEG")[:5000], "truncated or broken"),
    "text": (lambda: b"What is in this picture?\n" * 100, "not an image in a known format"),
    "HTML": (lambda: b"<!DOCTYPE html><svg><script>", "not an image in a known format"),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image in a known format"),
}
TAKEN: dict[str, tuple[Callable[[], bytes], tuple[int, int]]] = {
    "10,000 frames": (lambda: animation(10_000), (16, 16)),
    "100 MB behind the last pixel": (lambda: png(pixels=bytes(100 << 20)), (8, 8)),
    "a progressive JPEG": (lambda: jpeg_of_scans(0), (1024, 1024)),
    "an honest TIFF tile": (lambda: tiff_of_tiles(16), (16, 16)),
}
LOAD = """
import json, resource, sys, time
from pathlib import Path
from PIL import Image
from zipvl_serving.errors import InputError
from zipvl_serving.vision.images import load_image

Image.init()
base, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    try:
        load_image(path.read_bytes())
    except InputError:
        pass
    seconds[path.name] = time.process_time() - start
print(json.dumps({"seconds": seconds, "mebibytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024}))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hostile")
    for name, (make, _) in {**REFUSED, **TAKEN}.items():
        (directory / name).write_bytes(make())
    return directory


@pytest.mark.filterwarnings(
    "ignore::PIL.Image.DecompressionBombWarning"
)  # as importing zipvl_serving.vision.images does
@pytest.mark.parametrize("name", REFUSED)
def test_refuses_with_one_line(files: Path, name: str) -> None:
    data = (files / name).read_bytes()
    assert len(data) < 1_000_000
    with pytest.raises(InputError, match=REFUSED[name][1]) as caught:
        load_image(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("name", TAKEN)
def test_reads_no_more_than_the_first_picture(files: Path, name: str) -> None:
    assert load_image((files / name).read_bytes()).size == TAKEN[name][1]


def test_costs_little_time_and_memory(files: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LOAD, files], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    cost = json.loads(done.stdout)
    assert set(cost["seconds"]) == set(REFUSED) | set(TAKEN)
    assert max(cost["seconds"].values()) < 2, cost
    assert cost["mebibytes"] < 150, cost  # Pillow itself allows 64 MiB of texts in a PNG
