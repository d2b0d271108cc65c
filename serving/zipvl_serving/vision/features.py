"""Image files to image features: read, preprocess, embed; features of images that come again are remembered."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from PIL import Image

from zipvl_serving.arrays import Array
from zipvl_serving.errors import InputError
from zipvl_serving.metrics import Metrics
from zipvl_serving.sessions.base import Session
from zipvl_serving.vision.images import ImageProcessor, load_image


def embed_images(session: Session, pixel_values: Array) -> Array | None:
    """Image features [visual, hidden] of pixel_values float32 [images, channels, height, width]; None without images.

    Image by image, as a server embeds them: a batch would add in another order.
    """
    each = [session.vision(pixel_values[at : at + 1]) for at in range(len(pixel_values))]
    return np.concatenate(each) if each else None


class FeatureCache:
    """Image features by the content of their file; the least recently used go first. Safe for several threads."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.bytes = 0
        self._features: OrderedDict[bytes, Array] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Array | None:
        with self._lock:
            found = self._features.get(key)
            if found is not None:
                self._features.move_to_end(key)
            return found

    def put(self, key: bytes, features: Array) -> None:
        """Keep features [tokens, hidden], unless they alone are more than the cache holds."""
        if features.nbytes > self.capacity_bytes:
            return
        with self._lock:
            if key not in self._features:
                self._features[key] = features
                self.bytes += features.nbytes
            while self.bytes > self.capacity_bytes:
                _, dropped = self._features.popitem(last=False)
                self.bytes -= dropped.nbytes


class Vision:
    """Embeds image files; any thread may call it, the vision engine runs for one at a time."""

    def __init__(
        self, session: Session, processor: ImageProcessor, *, cache_bytes: int, max_pixels: int, metrics: Metrics
    ) -> None:
        self._session = session
        self._processor = processor
        self._max_pixels = max_pixels
        self._metrics = metrics
        self._cache = FeatureCache(cache_bytes)
        self._engine = threading.Lock()

    def embed(self, files: Sequence[bytes]) -> tuple[list[Array], int]:
        """Features [tokens, hidden] of each encoded image file, and how many of them were remembered.

        Raises InputError that names the image by its place, from 1, where one cannot be read.
        """
        keys = [hashlib.sha256(file).digest() for file in files]
        found = {key: features for key in keys if (features := self._cache.get(key)) is not None}
        hits = sum(key in found for key in keys)
        missing = {key: at for at, key in enumerate(keys) if key not in found}
        # One after the other: a decoded image may take hundreds of megabytes, and others want the engine too.
        for key, at in missing.items():
            pixels = self._processor([self._load(files[at], at + 1)])
            with self._engine:
                found[key] = self._session.vision(pixels)
            self._cache.put(key, found[key])
        self._metrics.count("image_cache_hits_total", hits)
        self._metrics.count("image_cache_misses_total", len(missing))
        self._metrics.gauge("image_cache_bytes", self._cache.bytes)
        return [found[key] for key in keys], hits

    def _load(self, file: bytes, place: int) -> Image.Image:
        try:
            return load_image(file, self._max_pixels)
        except InputError as error:
            raise InputError(f"image {place}{str(error).removeprefix('the image')}") from None
