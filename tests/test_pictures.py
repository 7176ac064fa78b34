"""Picture files are written completely, or an error names the file and nothing is left of it."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from jaxseg.pictures import read_picture, write_picture

PICTURE = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_picture_is_written_without_a_word(tmp_path, name, capfd):
    write_picture(tmp_path / name, PICTURE)
    assert capfd.readouterr() == ("", "")
    assert read_picture(tmp_path / name).shape == PICTURE.shape
    if name == "a.png":
        np.testing.assert_array_equal(read_picture(tmp_path / name), PICTURE)
        np.testing.assert_array_equal(cv2.imread(str(tmp_path / name))[:, :, ::-1], PICTURE)


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.png'"):
        write_picture(tmp_path / "a.png", PICTURE)
    assert list(tmp_path.iterdir()) == []
