import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgpt import MediaError
from mmgpt.media import load_image

pytestmark = pytest.mark.filterwarnings("ignore")  # pytest undoes the filter that mmgpt.media sets for Pillow

UPRIGHT = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def encoded(image: PIL.Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixel(image: PIL.Image.Image) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel((0, 0))  # type: ignore[return-value]


@pytest.mark.parametrize("source", ["path", "str", "bytes", "picture", "array"])
def test_every_source_gives_the_same_picture(source, save):
    image = PIL.Image.fromarray(UPRIGHT)
    sources = {
        "path": save("a.png", encoded(image)),
        "str": str(save("b.png", encoded(image))),
        "bytes": encoded(image),
        "picture": image,
        "array": UPRIGHT,
    }
    loaded = load_image(sources[source])
    assert loaded.mode == "RGB"
    assert np.array_equal(np.asarray(loaded), UPRIGHT)


# How a camera stores an upright picture under each orientation (EXIF 2.3, tag 274: where row 0 and column 0 lie).
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],  # row 0 top, column 0 right
    3: UPRIGHT[::-1, ::-1],  # bottom, right
    4: UPRIGHT[::-1],  # bottom, left
    5: UPRIGHT.swapaxes(0, 1),  # left, top
    6: UPRIGHT[:, ::-1].swapaxes(0, 1),  # right, top
    7: UPRIGHT[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: UPRIGHT[::-1].swapaxes(0, 1),  # left, bottom
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_pictures_are_turned_upright(orientation, kind):
    exif = PIL.Image.Exif()
    exif[274] = orientation
    content = encoded(PIL.Image.fromarray(np.ascontiguousarray(STORED[orientation])), kind, exif=exif)
    assert np.array_equal(np.asarray(load_image(content)), UPRIGHT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0MM\0*\xff\xff\xff\xff rubbish", b"Exif\0\0no TIFF header", b"Exif\0\0MM\0*\0"]
)
def test_broken_exif_does_not_spoil_a_good_picture(kind, exif):
    assert load_image(encoded(PIL.Image.new("RGB", (8, 8), "red"), kind, exif=exif)).size == (8, 8)


def transparent(mode: str) -> PIL.Image.Image:
    image = PIL.Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    if mode == "P":
        image = PIL.Image.new("P", (2, 2), 1)
        image.putpalette([0, 0, 0, 255, 0, 0])
        image.info["transparency"] = 1
    elif mode in ("1", "L", "RGB"):
        image = PIL.Image.new(mode, (2, 2), 0)
        image.info["transparency"] = (0, 0, 0) if mode == "RGB" else 0
    return image if mode in ("P", "1", "L", "RGB") else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "L", "RGB"])
def test_transparency_becomes_white(mode):
    image = transparent(mode)
    assert image.has_transparency_data
    assert pixel(load_image(encoded(image))) == (255, 255, 255)


def test_half_transparent_red_is_pink():
    red, green, blue = pixel(load_image(PIL.Image.new("RGBA", (1, 1), (255, 0, 0, 128))))
    assert (red, green) == (255, blue)
    assert green == pytest.approx(127, abs=1)


@pytest.mark.parametrize(("kind", "order"), [("PNG", "<u2"), ("PPM", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_16_bit_grey_is_scaled_not_clipped(kind, order):
    grey = PIL.Image.fromarray(np.array([[0, 0x40FF], [0x8000, 0xFFFF]], order))
    loaded = np.asarray(load_image(encoded(grey, kind)))
    assert loaded[..., 0].tolist() == [[0, 0x40], [0x80, 0xFF]]
    assert (loaded == loaded[..., :1]).all()


def test_numbers_without_a_known_white_are_refused(refusal):
    refusal(lambda: load_image(encoded(PIL.Image.new("F", (2, 2), 0.5), "TIFF")))
    refusal(lambda: load_image(encoded(PIL.Image.new("I", (2, 2), 70_000), "TIFF")))


def test_other_colour_spaces_are_converted():
    assert pixel(load_image(encoded(PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))) == (255, 0, 0)
    grey = pixel(load_image(encoded(PIL.Image.new("LAB", (8, 8), (138, 128, 128)), "TIFF")))  # L* of sRGB 128 is 53.6
    assert grey == pytest.approx((129, 129, 129), abs=2)
    assert pixel(load_image(PIL.Image.new("HSV", (1, 1), (0, 255, 255)))) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(kind):
    rest = [PIL.Image.new("RGB", (8, 8), "blue")]
    content = encoded(PIL.Image.new("RGB", (8, 8), (255, 0, 0)), kind, save_all=True, append_images=rest)
    assert pixel(load_image(content)) == pytest.approx((255, 0, 0), abs=2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA", "ICO"])
def test_known_formats(kind):
    assert pixel(load_image(encoded(PIL.Image.new("RGB", (32, 32), (0, 0, 255)), kind))) == pytest.approx(
        (0, 0, 255), abs=4
    )


def test_the_given_picture_is_not_changed():
    image = PIL.Image.new("RGB", (2, 2))
    load_image(image).putpixel((0, 0), (1, 2, 3))
    assert pixel(image) == (0, 0, 0)


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with pixel data for one row of four."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(13))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(20_000, 15_000), (12_000, 10_000), (100_001, 1_000)])
def test_huge_pictures_are_refused_from_the_header(size, refusal):
    assert "pixels" in refusal(lambda: load_image(png_of(*size)))


def test_nothing_is_printed_about_odd_pictures(save):
    damaged = bytearray(encoded(NOISE, "TIFF", compression="tiff_lzw"))
    damaged[8:40] = bytes(32)
    samples = bytearray(encoded(NOISE, "TIFF"))
    samples[samples.index(struct.pack("<HHI", 277, 3, 1)) + 8] = 255  # samples to a pixel
    paths = [
        save("samples.tif", bytes(samples)),
        save("large.png", png_of(12_000, 10_000)),
        save("damaged.tif", bytes(damaged)),
    ]
    script = f"""
from mmgpt import MediaError
from mmgpt.media import load_image
for path in {[str(path) for path in paths]}:
    try:
        load_image(path)
    except MediaError:
        pass
"""
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (printed.stdout, printed.stderr) == ("", "")


def test_truncated_jpeg_is_refused(save, refusal):
    content = encoded(PIL.Image.effect_noise((64, 64), 90), "JPEG")
    assert "half.jpg" in refusal(lambda: load_image(save("half.jpg", content[: len(content) // 2])))


@pytest.mark.parametrize("kind", ["EPS", "PCX"])
def test_formats_out_of_the_list_are_refused(kind, refusal):
    assert "formats: JPEG" in refusal(lambda: load_image(encoded(PIL.Image.new("RGB", (8, 8)), kind)))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.full((4, 4, 3), np.nan),
    ],
)
def test_arrays_of_another_kind_are_refused(array, refusal):
    assert refusal(lambda: load_image(array)).startswith("array: ")


NOISE = PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8))
FILES = [encoded(NOISE, kind) for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "AVIF", "TGA", "ICO")]
FILES.append(encoded(NOISE, "TIFF", compression="tiff_lzw"))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(file=st.sampled_from(FILES), changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6))
def test_damaged_files_decode_or_are_refused(file, changes):
    damaged = bytearray(file)
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    told = ""
    try:
        assert load_image(bytes(damaged)).mode == "RGB"
    except MediaError as error:
        told = str(error)
    assert "\n" not in told


@pytest.mark.parametrize("source", ["bytes", "array", "picture"])
def test_the_callers_limit_of_pixels_holds_for_every_source(source):
    image = PIL.Image.fromarray(UPRIGHT)
    given_as = {"bytes": encoded(image), "array": UPRIGHT, "picture": image}[source]
    assert load_image(given_as, max_pixels=35).size == (7, 5)
    with pytest.raises(MediaError, match="7 x 5 is over 34 pixels; scale it down"):
        load_image(given_as, max_pixels=34)
