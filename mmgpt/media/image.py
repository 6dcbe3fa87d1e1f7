"""Pictures: a file, bytes, a PIL image or an array -> an upright RGB picture, with Pillow."""

import contextlib
import ctypes
import logging
import os
import warnings

import numpy as np
import PIL.Image
import PIL.ImageCms
from PIL import _imaging
from PIL.Image import Transpose

from mmgpt.errors import MediaError
from mmgpt.media.source import name_of, opened, told_as_media_error
from mmgpt.stored import Stored

# Formats that Pillow decodes in itself, without another program (EPS would start Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "QOI", "SGI")
MAX_PIXELS = 100_000_000  # of a picture; refused from its header. Decoded, such a picture takes 0.3 GB

UPRIGHT = {  # what undoes each value of the EXIF tag Orientation
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
ORIENTATION = 0x0112

# Pillow warns of odd files; what matters is an error here. For good, as warnings.catch_warnings is not for threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Python prints what no handler wants
# libtiff, which Pillow loads, would print to stderr what Pillow raises anyway.
with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def load_image(
    source: "str | os.PathLike[str] | bytes | Stored | PIL.Image.Image | np.ndarray", *, max_pixels: int = MAX_PIXELS
) -> PIL.Image.Image:
    """Decodes a picture: upright by its EXIF tag, RGB, transparency on white; of an animation the first frame.

    Args:
        source: A path, the bytes of a file (one of FORMATS), a PIL image, or uint8 (height, width, 3).
        max_pixels: A larger one is refused from its header, before it is decoded.

    Raises:
        MediaError: It is missing, damaged, of another format, or too large.
    """
    name = name_of(source)
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, PIL.Image.Image):
        with told_as_media_error(name, "a picture"):
            return _upright_rgb(source, name, max_pixels)
    with opened(source) as file, told_as_media_error(name, "a picture"):
        try:
            image = PIL.Image.open(file, formats=FORMATS)
        except PIL.UnidentifiedImageError as error:
            raise MediaError(f"{name}: is damaged or not a picture; formats: {', '.join(FORMATS)}") from error
        except PIL.Image.DecompressionBombError as error:  # Pillow's own limit, above ours
            raise MediaError(f"{name}: is larger than {max_pixels:,} pixels; scale it down") from error
        with image:
            return _upright_rgb(image, name, max_pixels)


def _from_array(array: np.ndarray, max_pixels: int) -> PIL.Image.Image:
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise MediaError(
            f"array: a picture is uint8 (height, width, 3) in 0..255, not {array.dtype} {array.shape}; convert it"
        )
    _check_size("array", array.shape[1], array.shape[0], max_pixels)
    return PIL.Image.fromarray(array)


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if width * height == 0:
        raise MediaError(f"{name}: has no pixels ({width} x {height}); remove it")
    if width * height > max_pixels:
        raise MediaError(f"{name}: {width} x {height} is over {max_pixels:,} pixels; scale it down")


def _upright_rgb(image: PIL.Image.Image, name: str, max_pixels: int) -> PIL.Image.Image:
    _check_size(name, *image.size, max_pixels)
    image.load()
    _check_size(name, *image.size, max_pixels)  # the picture inside an icon may differ from its header
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # bad EXIF data around a good picture
        orientation = None
    rgb = _rgb(image, name)
    return rgb.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else rgb


def _rgb(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """Any mode of Pillow to RGB, as a new picture."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _grey_from_numbers(image, name).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, "white")
        return PIL.Image.alpha_composite(white, image).convert("RGB")
    if image.mode == "LAB":
        to_srgb = PIL.ImageCms.buildTransform(
            PIL.ImageCms.createProfile("LAB"), PIL.ImageCms.createProfile("sRGB"), "LAB", "RGB"
        )
        return PIL.ImageCms.applyTransform(image, to_srgb) or image
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _grey_from_numbers(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """16-bit grey (modes I;16*, and I as PNG and PGM give it) to 8 bits; Pillow itself would clip it at 255."""
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise MediaError(f"{name}: its numbers beyond 16 bits have no known white; save it with 8 or 16 bits")
    return PIL.Image.fromarray((values >> 8).astype(np.uint8))
