"""Reading and writing picture files, with one-sentence errors."""

import contextlib
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from jaxseg.errors import UserError
from jaxseg.files import is_file_name


class ImageError(UserError):
    """A picture cannot be used; the message says what is wrong and what would be right."""


def read_picture(path: str | Path) -> UInt8[np.ndarray, "H W 3"]:
    """Reads a picture file, in any format that OpenCV reads, as RGB.

    The orientation in its EXIF data is applied.

    Raises:
        ImageError: the file cannot be read, is not a picture, or has more pixels than OpenCV allows
            (2**30).
    """
    if not is_file_name(str(path)):
        raise ImageError(f"{str(path)!r} is no name that a file can have.")
    try:
        encoded = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror or error}).") from None
    try:
        picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB) if encoded else None
    except cv2.error as error:
        raise ImageError(f"{path} cannot be decoded: {_reason(error)}.") from None
    except MemoryError:
        raise ImageError(f"{path} cannot be decoded: there is not enough memory for its pixels.") from None
    if picture is None:
        raise ImageError(f"{path} is no picture that OpenCV can read.")
    return picture


def _reason(error: cv2.error) -> str:
    if "CV_IO_MAX_IMAGE" in str(error):
        return "it says that it has more pixels than OpenCV allows (2**30)"
    return f"OpenCV says {' '.join((error.err or 'nothing of why').split())[:200]!r}"


def write_picture(path: Path, picture: UInt8[np.ndarray, "H W 3"], *, jpeg_quality: int = 95) -> None:
    """Writes an RGB picture, in the format that the suffix of the file name says.

    Args:
        path: the file.
        picture: uint8 `[H, W, 3]`, RGB.
        jpeg_quality: the quality of a JPEG file, 0..100.

    Raises:
        OSError: the file cannot be written, for example because the disk is full; no incomplete
            file is left then.
    """
    # OpenCV's own writer does not report a full disk.
    options = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality] if path.suffix in (".jpg", ".jpeg") else []
    encoded = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)[1]
    try:
        path.write_bytes(encoded.tobytes())
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None
