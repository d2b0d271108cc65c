"""Images to pixel values: equal to Hugging Face's processors, and one line for whatever is no image."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from zipvl_serving.errors import InputError
from zipvl_serving.vision.images import ImageProcessor, load_image

SIZES = [(1, 1), (28, 28), (29, 27), (13, 57), (57, 13), (200, 31), (31, 200), (101, 99)]
CONFIGS: list[dict[str, Any]] = [
    {},
    {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}},
    {"size": 28, "crop_size": 28},
    {"size": {"shortest_edge": 20}, "crop_size": {"height": 33, "width": 27}},  # pads
    {"size": {"height": 30, "width": 41}, "do_center_crop": False, "resample": 2},
    {"size": {"height": 9, "width": 50}, "crop_size": {"height": 14, "width": 21}, "resample": 0},
    {"do_resize": False, "crop_size": {"height": 40, "width": 25}},
    {"size": {"height": 8, "width": 8}, "do_center_crop": False, "do_normalize": False},
    {"size": {"height": 8, "width": 8}, "do_center_crop": False, "do_rescale": False},
    {"size": {"height": 8, "width": 8}, "do_center_crop": False, "image_mean": 0.5, "image_std": 0.25},
]


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, bands), np.uint8)
    return Image.fromarray(levels if bands > 1 else levels[..., 0]).convert(mode)


def from_file(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("config", CONFIGS)
def test_equals_clip_processor(config: dict[str, Any]) -> None:
    reference = CLIPImageProcessorPil(**config)
    mine = ImageProcessor.from_config(reference.to_dict())
    bare = ImageProcessor.from_config({**config, "image_processor_type": "CLIPImageProcessorFast"})
    for size in SIZES:
        image = noise(*size)
        expected = reference(image, return_tensors="np")["pixel_values"]
        assert mine([image]).dtype == np.float32
        np.testing.assert_array_equal(mine([image]), expected.astype(np.float32))
        np.testing.assert_array_equal(bare([image]), mine([image]))
        assert mine.output_size in (None, expected.shape[2:])


def test_equals_siglip_processor() -> None:
    config = {"size": {"height": 28, "width": 42}}
    mine = ImageProcessor.from_config({**config, "image_processor_type": "SiglipImageProcessor"})
    images = [noise(57, 13), noise(9, 80, seed=1)]
    expected = SiglipImageProcessorPil(**config)(images, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(mine(images), expected)


def all_modes() -> dict[str, Image.Image]:
    gradient = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)
    modes = {mode: noise(40, 30, mode) for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I", "F")}
    keyed = noise(40, 30, "P")
    keyed.info["transparency"] = 3
    return {**modes, "I;16": Image.fromarray(gradient), "P with transparency": keyed}


@pytest.mark.parametrize("mode", all_modes())
def test_converts_every_mode_as_hugging_face(mode: str) -> None:
    image = all_modes()[mode]
    reference = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28)
    expected = reference(image, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(ImageProcessor.from_config(reference.to_dict())([image]), expected)


def test_reads_nested_config_and_gives_an_empty_batch() -> None:
    nested = {"image_processor": {"image_processor_type": "CLIPImageProcessor", "crop_size": 28}, "patch_size": 14}
    assert ImageProcessor.from_config(nested)([]).shape == (0, 3, 28, 28)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "CLIPImageProcesor"}, "did you mean 'CLIPImageProcessor'"),
        ({"image_processor_type": None}, "valid: CLIPImageProcessor, "),
        ({"size": {"longest_edge": 3}}, "unsupported size"),
        ({"crop_size": {"shortest_edge": 3}}, "unsupported crop_size"),
        ({"resample": 17}, r"valid: 0 \(nearest\)"),
        ({"image_mean": [0.5, 0.5]}, "unsupported image_mean"),
        ({"image_std": [0.5, 0.0, 0.5]}, "unsupported image_std"),
        ({"rescale_factor": "1/255"}, "unsupported rescale_factor"),
        ({"do_pad": True}, "do_pad is not supported"),
    ],
)
def test_refuses_unsupported_settings(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageProcessor.from_config({"image_processor_type": "CLIPImageProcessor", **config})


def test_refuses_images_it_cannot_shape() -> None:
    crops = ImageProcessor.from_config({"image_processor_type": "CLIPImageProcessor"})
    with pytest.raises(InputError, match="too long and narrow"):
        crops([Image.new("RGB", (1, 50_000))])
    keeps = ImageProcessor.from_config({"image_processor_type": "SiglipImageProcessor", "do_resize": False})
    with pytest.raises(InputError, match="one size after resizing, not 5 x 4, 8 x 6"):
        keeps([noise(8, 6), noise(5, 4)])
    with pytest.raises(InputError, match="mode La "):
        keeps([Image.new("La", (4, 4))])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_loads_files_and_bytes(form: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (9, 7), (200, 30, 30))
    path = tmp_path / "image"
    path.write_bytes(from_file(image, form))
    for source in (path, str(path), path.read_bytes()):
        loaded = load_image(source).convert("RGB")
        assert np.abs(np.asarray(loaded, int) - np.asarray(image, int)).max() < 8


def test_turns_images_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    assert load_image(from_file(noise(20, 10), "JPEG", exif=exif)).size == (10, 20)


def test_one_line_for_what_is_no_image(tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("not an image")
    png, jpeg = from_file(noise(60, 60)), from_file(noise(60, 60), "JPEG")
    cases: list[tuple[str | Path | bytes, str]] = [
        (tmp_path / "missing.png", "missing.png: .*does not exist"),
        (tmp_path, "is a directory"),
        ("", "is a directory"),
        ("a\0b", "does not exist"),
        ("/dev/null", "not a regular file"),
        (text, "notes.png: not an image in a known format"),
        (b"", "the image: not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a known format"),
        (png[:-200], "truncated or broken"),
        (jpeg[: len(jpeg) // 2], "truncated or broken"),
    ]
    for source, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            load_image(source)
        assert "\n" not in str(caught.value)


def test_refuses_too_many_pixels_before_decoding() -> None:
    bomb = from_file(Image.new("1", (8001, 8000)))
    cut = bomb[:100]  # no pixel can be decoded from this, so the refusal came first
    with pytest.raises(InputError, match="8001 x 8000 pixels, more than the limit of 64 megapixels"):
        load_image(cut)
    with pytest.raises(InputError, match=r"more than the limit of 0\.0001 megapixels"):
        load_image(from_file(noise(11, 10)), max_pixels=100)
    huge = bytearray(cut)
    huge[16:24] = (50_000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    with pytest.raises(InputError, match="the image: too large: "):
        load_image(bytes(huge))


def test_geometry_is_what_the_model_sees() -> None:
    """A picture over the patches must be drawn on the crop, not on the whole image."""
    processor = ImageProcessor.from_config(
        {
            "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 8},
            "crop_size": {"height": 8, "width": 8}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        }
    )  # fmt: skip
    wide = Image.new("RGB", (32, 8), "blue")
    wide.paste("red", (0, 0, 8, 8))
    seen = processor.geometry(wide)
    assert seen.size == (8, 8)
    assert seen.getcolors() == [(64, (0, 0, 255))]
    assert np.allclose(processor([wide])[0], np.asarray(seen).transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
