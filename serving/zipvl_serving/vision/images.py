"""Image files to pixel values, as Hugging Face's CLIP and SigLIP image processors make them in their PIL form."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from zipvl_serving.errors import InputError, nearest

MAX_PIXELS = 64_000_000

# Every scan of a JPEG goes over all of its pixels, and one that changes nothing takes a hundred bytes: a small file
# could keep a processor busy for hours. libtiff has the same limit; encoders write about ten.
MAX_SCANS = 100

# Pillow also opens formats that run other programs (EPS) or that nobody sends to a model: a server needs none of them.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

# What each family of processors assumes for a setting that its file leaves out.
_SHARED: dict[str, Any] = {
    "do_resize": True,
    "resample": Image.Resampling.BICUBIC,
    "crop_size": 224,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": {
        **_SHARED,
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    "SiglipImageProcessor": {
        **_SHARED,
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "image_mean": 0.5,
        "image_std": 0.5,
    },
}
_VALID_TYPES = {family + backend: family for family in _DEFAULTS for backend in ("", "Pil", "Fast")}

# load_image has a limit of its own, so Pillow's warning at another one would only be noise on the user's terminal, and
# so would be what it says of odd metadata.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def load_image(source: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read and decode one image (the first frame of an animation), turned upright by its EXIF orientation.

    `source` is a path, or the bytes of an image file. The mode is left as it is: ImageProcessor converts to RGB.
    Raises InputError, one line, for a path that is missing or no file, for bytes in none of FORMATS, for a truncated
    or broken image, and for one of more than `max_pixels` pixels or MAX_SCANS scans, which is never decoded.
    """
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), "the image", max_pixels)
    path = Path(source)
    if not path.is_file():
        problem = "is a directory" if path.is_dir() else "is not a regular file" if path.exists() else "does not exist"
        raise InputError(f"{path}: an image file was expected, but it {problem}")
    try:
        with path.open("rb") as stream:
            return _decode(stream, str(path), max_pixels)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _decode(stream: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(stream, formats=FORMATS)  # reads the header only
        width, height = _largest(image)
    except Image.DecompressionBombError as error:  # Pillow's own limit, which holds whatever max_pixels is
        raise InputError(f"{name}: too large: {' '.join(str(error).split())}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not an image in a known format ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's parsers raise whatever they trip over: OSError, SyntaxError, ValueError, ...
        raise _broken(name, error) from error
    if width * height > max_pixels:
        limit = f"{max_pixels / 1e6:g} megapixels"
        raise InputError(f"{name}: too large: {width} x {height} pixels, more than the limit of {limit}")
    if image.format in ("JPEG", "MPO"):
        stream.seek(0)
        scans = stream.read().count(b"\xff\xda")  # in compressed data no byte but 00 follows ff
        if scans > MAX_SCANS:
            raise InputError(f"{name}: a JPEG of {scans} scans, more than the limit of {MAX_SCANS}")
    try:
        image.load()
        return ImageOps.exif_transpose(image)
    except Exception as error:
        raise _broken(name, error) from error


def _largest(image: Image.Image) -> tuple[int, int]:
    """The width and height of what decoding has to hold: the image, or a tile of a TIFF, which may be larger."""
    tags = getattr(image, "tag_v2", {})
    tile = tags.get(TiffImagePlugin.TILEWIDTH, 0), tags.get(TiffImagePlugin.TILELENGTH, 0)
    return max(image.size, tile, key=math.prod)


def _broken(name: str, error: Exception) -> InputError:
    return InputError(f"{name}: the image is truncated or broken: {' '.join(str(error).split())}")


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB; transparency is laid over white, as Hugging Face's processors do it."""
    try:
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
        return image.convert("RGB")
    except ValueError as error:
        raise InputError(f"an image of mode {image.mode} cannot be converted to RGB") from error


@dataclass(frozen=True)
class ImageProcessor:
    """Resize, centre crop, rescale and normalise; equal bit for bit to Hugging Face's PIL backend.

    resize_to: the length of the shortest edge, or (height, width), or None for no resizing.
    crop_to: (height, width) of the centre crop, padded with black where the image is smaller, or None.
    table: float32 [3, 256], the value that each 8-bit level of each channel becomes.
    """

    resize_to: int | tuple[int, int] | None
    resample: Image.Resampling
    crop_to: tuple[int, int] | None
    table: NDArray[np.float32]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ImageProcessor:
        """Build from a parsed preprocessor_config.json, or a processor_config.json with an `image_processor` in it.

        `do_convert_rgb` is not read: the vision tower takes three channels, so every image is converted.
        Raises InputError for an unsupported `image_processor_type` or setting, naming what would be valid.
        """
        config = config.get("image_processor", config)
        kind = config.get("image_processor_type")
        if not isinstance(kind, str) or kind not in _VALID_TYPES:
            raise InputError(f"unsupported image_processor_type {kind!r}; {nearest(str(kind), _VALID_TYPES)}")
        for name in ("do_pad", "use_square_size"):
            if config.get(name):
                raise InputError(f"the image processor's {name} is not supported; valid: false")
        given = {name: value for name, value in config.items() if value is not None}
        settings = _DEFAULTS[_VALID_TYPES[kind]] | given
        crop = _parse_size("crop_size", settings["crop_size"]) if settings["do_center_crop"] else None
        return cls(
            resize_to=_parse_size("size", settings["size"]) if settings["do_resize"] else None,
            resample=_parse_resample(settings["resample"]),
            crop_to=(crop, crop) if isinstance(crop, int) else crop,
            table=_level_table(settings),
        )

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of every image that comes out, or None where it depends on the one that goes in."""
        return self.crop_to or (self.resize_to if isinstance(self.resize_to, tuple) else None)

    def __call__(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Pixel values, float32 [images, 3, H, W]; without images [0, 3, H, W] (H = W = 0 if no size is fixed).

        Raises InputError for an image whose mode or proportions cannot be handled, and for several images that come
        out in different sizes.
        """
        if not images:
            return np.zeros((0, 3, *(self.output_size or (0, 0))), np.float32)
        pixels = [self._process(image) for image in images]
        sizes = {array.shape[1:] for array in pixels}
        if len(sizes) > 1:
            listing = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
            raise InputError(f"the images of one prompt must have one size after resizing, not {listing}")
        return np.stack(pixels)

    def geometry(self, image: Image.Image) -> Image.Image:
        """What the model sees of an image: RGB, resized and cropped, before rescaling."""
        image = to_rgb(image)
        if self.resize_to is not None:
            image = image.resize(self._resized(*image.size), self.resample)
        if self.crop_to is not None:
            height, width = self.crop_to
            # Floor division also of negative differences; Pillow fills what lies outside the image with black.
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        return image

    def _process(self, image: Image.Image) -> NDArray[np.float32]:
        levels = np.asarray(self.geometry(image))
        return np.stack([self.table[channel].take(levels[..., channel]) for channel in range(3)])

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if isinstance(self.resize_to, tuple):
            return self.resize_to[1], self.resize_to[0]
        assert self.resize_to is not None
        longest_edge = int(self.resize_to * max(width, height) / min(width, height))
        if self.resize_to * longest_edge > MAX_PIXELS:
            raise InputError(f"an image of {width} x {height} pixels is too long and narrow for this model")
        return (self.resize_to, longest_edge) if width <= height else (longest_edge, self.resize_to)


def _parse_size(name: str, value: Any) -> int | tuple[int, int]:
    if isinstance(value, Mapping):
        value = {key: edge for key, edge in value.items() if edge is not None}
    match value:
        case int(edge) if edge > 0:
            return edge
        case {"shortest_edge": int(edge)} if len(value) == 1 and edge > 0 and name == "size":
            return edge
        case {"height": int(height), "width": int(width)} | [int(height), int(width)] if (
            len(value) == 2 and height > 0 and width > 0
        ):
            return height, width
    shortest = "{'shortest_edge': n} or " if name == "size" else ""
    raise InputError(f"unsupported {name} {value!r}; valid: {shortest}{{'height': n, 'width': n}}")


def _parse_resample(value: Any) -> Image.Resampling:
    try:
        return Image.Resampling(value)
    except ValueError as error:
        valid = ", ".join(f"{filter.value} ({filter.name.lower()})" for filter in Image.Resampling)
        raise InputError(f"unsupported resample {value!r}; valid: {valid}") from error


def _level_table(settings: Mapping[str, Any]) -> NDArray[np.float32]:
    """What rescaling and normalising make of each 8-bit level: float32 [3, 256], in Hugging Face's precisions."""
    levels = np.arange(256, dtype=np.float64)
    if settings["do_rescale"]:
        factor = settings["rescale_factor"]
        if not isinstance(factor, int | float):
            raise InputError(f"unsupported rescale_factor {factor!r}; valid: a number")
        levels = levels * factor
    table = np.repeat(levels.astype(np.float32)[None], 3, axis=0)
    if settings["do_normalize"]:
        mean, std = (_parse_channels(name, settings[name]) for name in ("image_mean", "image_std"))
        if not std.all():
            raise InputError(f"unsupported image_std {settings['image_std']!r}; valid: three numbers other than 0")
        table = (table - mean[:, None]) / std[:, None]
    return table


def _parse_channels(name: str, value: Any) -> NDArray[np.float32]:
    numbers = value if isinstance(value, list | tuple) else [value] * 3
    if len(numbers) != 3 or not all(isinstance(number, int | float) for number in numbers):
        raise InputError(f"unsupported {name} {value!r}; valid: one number or three")
    return np.array(numbers, np.float32)
