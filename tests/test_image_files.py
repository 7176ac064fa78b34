"""Image files of a dataset: all formats become RGB with the right orientation.

A broken file gives an error that names it.
"""

import base64
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_coco import HEIGHT, WIDTH, annotation, image_entry, open_one, write_dataset

from jaxseg.data.sources.from_config import CocoDataset, DataError


def png(color_type: int, bits: int, rows: list[bytes], *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, color_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in ((b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b"")))


# An image of 16 x 16 pixels in Adobe's CMYK, with quarters of cyan, magenta, yellow and half black.
CMYK_JPEG = base64.b64decode(
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwADAgIDAgIDAwMDBAMDBAUIBQUEBAUKBwcGCAwKDAwLCgsLDQ4SEA0OEQ4LCxAWEBETFBUVFQwPFxgWFBgSFBUU/8AA"
    "FAgAEAAQBEMRAE0RAFkRAEsRAP/EAB8AAAEFAQEBAQEBAAAAAAAAAAABAgMEBQYHCAkKC//EALUQAAIBAwMCBAMFBQQEAAABfQECAwAEEQUSITFBBhNRYQci"
    "cRQygZGhCCNCscEVUtHwJDNicoIJChYXGBkaJSYnKCkqNDU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6g4SFhoeIiYqSk5SVlpeYmZqi"
    "o6Slpqeoqaqys7S1tre4ubrCw8TFxsfIycrS09TV1tfY2drh4uPk5ebn6Onq8fLz9PX29/j5+v/aAA4EQwBNAFkASwAAPwD8qq/VOv1Tr9U6/qor+Veiiiv6"
    "qK/lXooor+qivypr/9k="
)


def read_image(folder: Path, data: bytes, name: str = "1.png", **changes) -> np.ndarray:
    paths = write_dataset(folder, [annotation()], [image_entry(file_name=name, **changes)])
    (paths[1] / name).write_bytes(data)
    return CocoDataset(*paths)[0].image


def test_colours_come_out_as_rgb(tmp_path):
    rows = [bytes([250, 128, 3]) * WIDTH] * HEIGHT
    assert read_image(tmp_path, png(2, 8, rows))[0, 0].tolist() == [250, 128, 3]


def test_grey_becomes_rgb(tmp_path):
    assert read_image(tmp_path, png(0, 8, [bytes(range(WIDTH))] * HEIGHT))[3, 7].tolist() == [7, 7, 7]


def test_a_palette_becomes_its_colours(tmp_path):
    palette = bytes([10, 20, 30, 200, 100, 50])
    image = read_image(tmp_path, png(3, 8, [bytes([0, 1] * (WIDTH // 2))] * HEIGHT, (b"PLTE", palette)))
    assert image[0, :2].tolist() == [[10, 20, 30], [200, 100, 50]]


def test_alpha_is_dropped(tmp_path):
    image = read_image(tmp_path, png(6, 8, [bytes([250, 128, 3, 0]) * WIDTH] * HEIGHT))
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image[0, 0].tolist() == [250, 128, 3]


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    values = np.linspace(0, 65535, WIDTH).astype(">u2")
    assert read_image(tmp_path, png(0, 16, [values.tobytes()] * HEIGHT))[0, :, 1].tolist() == (values >> 8).tolist()


def test_cmyk_becomes_rgb(tmp_path):
    image = read_image(tmp_path, CMYK_JPEG, "1.jpg", height=16, width=16).astype(int)
    assert abs(image[[3, 3, 12, 12], [3, 12, 3, 12]] - [[0, 255, 255], [255, 0, 255], [255, 255, 0], [127, 127, 127]]).max() <= 2


def turned_jpeg(height: int, width: int) -> bytes:
    """Makes a JPEG with a black left half, whose EXIF data ask for a clockwise quarter turn."""
    image = np.full((height, width, 3), 255, np.uint8)
    image[:, : width // 2] = 0
    data = cv2.imencode(".jpg", image)[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def test_orientation_is_applied_unless_the_annotations_are_for_the_stored_pixels(tmp_path):
    turned = read_image(tmp_path, turned_jpeg(WIDTH, HEIGHT), "1.jpg")
    assert turned.shape == (HEIGHT, WIDTH, 3)
    assert turned[2].max() < 20
    assert turned[-2].min() > 235
    stored = read_image(tmp_path, turned_jpeg(HEIGHT, WIDTH), "1.jpg")
    assert stored.shape == (HEIGHT, WIDTH, 3)
    assert stored[:, 2].max() < 20
    assert stored[:, -2].min() > 235


@pytest.mark.parametrize("extension", [".jpg", ".png", ".bmp", ".webp"])
@pytest.mark.parametrize("part", [0, 0.1, 0.6, 0.99])
def test_a_truncated_image_is_an_error_that_names_it(tmp_path, extension, part):
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    data = cv2.imencode(extension, noise)[1].tobytes()
    name = f"cut{extension}"
    with pytest.raises(DataError, match=rf"{name} is broken or no image"):
        read_image(tmp_path, data[: int(part * len(data))], name)


def test_an_image_of_another_size_is_an_error_that_names_both(tmp_path):
    with pytest.raises(DataError, match=r"1.png has 30 x 20 pixels, but its annotations are for 40 x 20"):
        read_image(tmp_path, png(0, 8, [bytes(WIDTH)] * HEIGHT), width=40)


def test_an_image_that_vanishes_later_is_an_error_that_names_it(tmp_path):
    dataset = open_one(tmp_path, annotation())
    (tmp_path / "images" / "1.png").unlink()
    with pytest.raises(DataError, match=r"1.png cannot be read"):
        dataset[0]
