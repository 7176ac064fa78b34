"""Reading files of weights: every format returns the arrays that were written.

No code in a file is executed, and a bad file gives an error of one sentence.
"""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.weights.formats.files import WeightsError
from jaxseg.weights.formats.pytorch import state_dict_pickle, write_zip
from jaxseg.weights.formats.readers import read_weights
from jaxseg.weights.formats.safetensors import write_safetensors
from jaxseg.weights.formats.unpickle import Malformed, Storage, Tensor, View

DTYPES = ["float32", "float64", "float16", jnp.bfloat16, "int64", "int32", "int16", "int8", "uint8", "bool"]
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001


def arrays() -> dict[str, np.ndarray]:
    """Returns an array of each type, a scalar, and an empty array."""
    rng = np.random.default_rng(0)
    named = {f"of.{np.dtype(dtype).name}": (rng.normal(size=(3, 2, 5)) * 9).astype(dtype) for dtype in DTYPES}
    return named | {"scalar": np.array(7, np.int64), "empty": np.zeros((0, 4), np.float32)}


def short(*texts: str) -> bytes:
    """Encodes texts as in a pickle."""
    return b"".join(b"X" + struct.pack("<I", len(text)) + text.encode() for text in texts)


def write_legacy(path: Path, named: dict[str, np.ndarray], **system) -> None:
    """Writes the stream that torch.save wrote until 2020."""
    with path.open("wb") as file:
        system = {"protocol_version": VERSION, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}} | system
        for head in (MAGIC, VERSION, system):
            pickle.dump(head, file, protocol=2)
        file.write(state_dict_pickle(named))
        pickle.dump([str(i) for i in range(len(named))], file, protocol=2)
        for value in named.values():
            file.write(struct.pack("<q", value.size) + value.tobytes())


def write_zoo(path: Path, named: dict[str, np.ndarray]) -> None:
    path.write_bytes(pickle.dumps({"model": named, "__author__": "somebody", "matching_heuristics": True}, protocol=2))


def write_npz(path: Path, named: dict[str, np.ndarray]) -> None:
    np.savez(path, **named)


WRITERS = {
    "zip.pth": write_zip,
    "legacy.pth": write_legacy,
    "zoo.pkl": write_zoo,
    "numpy.npz": write_npz,
    "some.safetensors": write_safetensors,
}


def written(folder: Path, name: str) -> tuple[Path, dict[str, np.ndarray]]:
    """Writes a file in one of the formats, and returns its path and its content."""
    named = arrays()
    if name in ("zoo.pkl", "numpy.npz"):
        # NumPy's own formats do not support bfloat16.
        del named["of.bfloat16"]
    WRITERS[name](folder / name, named)
    return folder / name, named


def assert_same(read, expected) -> None:
    assert set(read) == set(expected)
    for name, value in expected.items():
        assert (read[name].dtype, read[name].shape) == (value.dtype, value.shape), name
        assert read[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_what_was_written_whatever_its_name(tmp_path, name):
    path, named = written(tmp_path, name)
    assert_same(read_weights(path), named)
    assert_same(read_weights(path.rename(tmp_path / "weights")), named)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_numpy_arrays_of_every_pickle_protocol(tmp_path, protocol):
    named = {"a": np.arange(6, dtype=">f4").reshape(2, 3), "b": np.asfortranarray(np.arange(6.0).reshape(2, 3))}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(named, protocol=protocol))
    read = read_weights(tmp_path / "a.pkl")
    for name, value in named.items():
        np.testing.assert_array_equal(read[name], value)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_weights_inside_a_checkpoint_of_other_things(tmp_path, wrapper):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"epoch": 3, wrapper: {"x": np.ones(2)}, "optimizer": {"lr": 0.1}}))
    assert list(read_weights(tmp_path / "a.pkl")) == ["x"]


@pytest.mark.parametrize("new_container", [True, False])
def test_what_torch_saves_is_read(tmp_path, new_container):
    """The file has parameters, every type, and views with strides and offsets of one storage.

    No module of torch is used.
    """
    torch = pytest.importorskip("torch", reason="wants PyTorch")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    saved = {name: torch.from_numpy(value.copy()) for name, value in arrays().items() if "bfloat16" not in name}
    saved |= {
        "bfloat16": torch.linspace(-3, 3, 7).to(torch.bfloat16),
        "base": base,
        "strided": base[1:, ::2],
        "transposed": base.t(),
        "expanded": torch.ones(1).expand(5),
        "parameter": torch.nn.Parameter(base[2].clone()),
    }
    path = tmp_path / "a.pth"
    torch.save(torch.nn.ParameterDict({"a": base}).state_dict() | saved, path, _use_new_zipfile_serialization=new_container)
    read = read_weights(path)
    for name, tensor in saved.items():
        expected = tensor.detach().float().numpy() if tensor.dtype == torch.bfloat16 else tensor.detach().numpy()
        assert read[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(read[name].astype(expected.dtype), expected, err_msg=name)
    assert np.shares_memory(read["base"], read["transposed"])


def test_views_of_storages_in_the_oldest_streams(tmp_path, monkeypatch):
    """PyTorch 0.3 gives the offset and size of a part of a storage, here 3 numbers from 1 on."""
    values = np.arange(6, dtype=np.float32)
    program = state_dict_pickle({"a": values})
    program = program.replace(b"tQ", b"(" + short("view") + b"K\x02K\x03ttQ").replace(b"(J\x06\0\0\0t", b"(J\x03\0\0\0t")
    monkeypatch.setattr(sys.modules[__name__], "state_dict_pickle", lambda named: program)
    write_legacy(tmp_path / "a.pth", {"a": values})
    np.testing.assert_array_equal(read_weights(tmp_path / "a.pth")["a"], [2, 3, 4])


def test_scalars_of_numpy(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": np.float32(1.5)}, protocol=2))
    assert read_weights(tmp_path / "a.pkl")["a"] == np.float32(1.5)


def test_torch_loads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch", reason="wants PyTorch")
    named = {name: value for name, value in arrays().items() if "bfloat16" not in name}
    write_zip(tmp_path / "a.pth", named)
    for options in ({"weights_only": True}, {"weights_only": False}, {"mmap": True}):
        read = torch.load(tmp_path / "a.pth", **options)
        assert_same({name: tensor.numpy() for name, tensor in read.items()}, named)


def test_safetensors_is_the_packages_format(tmp_path):
    package = pytest.importorskip("safetensors.numpy", reason="wants safetensors")
    named = {name: value for name, value in arrays().items() if "bfloat16" not in name}
    write_safetensors(tmp_path / "ours.safetensors", named)
    assert_same(package.load_file(tmp_path / "ours.safetensors"), named)
    package.save_file(named, tmp_path / "theirs.safetensors", {"format": "pt"})
    assert_same(read_weights(tmp_path / "theirs.safetensors"), named)


# ---- Malicious files ----


class Attack:
    """An object that creates a file if Python's own unpickler reads it."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def as_plain(path: Path, program: bytes) -> None:
    path.write_bytes(program)


def as_zip(path: Path, program: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)


def as_legacy(path: Path, program: bytes) -> None:
    path.write_bytes(b"".join(pickle.dumps(head, protocol=2) for head in (MAGIC, VERSION, {"little_endian": True})) + program)


@pytest.mark.parametrize("container", [as_plain, as_zip, as_legacy])
def test_a_pickle_that_runs_a_command_is_refused(tmp_path, container):
    target = tmp_path / "run"
    program = pickle.dumps({"weight": Attack(target)}, protocol=2)
    pickle.loads(program)
    assert target.exists(), "the attack must work with Python's own unpickler"
    target.unlink()
    container(tmp_path / "a.pth", program)
    with pytest.raises(WeightsError, match=rf"a\.pth cannot be loaded: it asks for {os.system.__module__}\.system, .* refused"):
        read_weights(tmp_path / "a.pth")
    assert not target.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins.eval",
        "builtins.getattr",
        "builtins.__import__",
        "functools.partial",
        "numpy.load",
        "numpy.fromfile",
        "numpy.ndarray.tofile",
        "torch.load",
        "torch.hub.load",
        "torch._utils._rebuild_tensor_v2.__globals__",
        "torch.storage._load_from_bytes",
        "jaxseg.weights.formats.unpickle.unpickle",
        "pickle.loads",
    ],
)
@pytest.mark.parametrize("stack_global", [False, True])
def test_every_other_global_is_refused_by_name(tmp_path, name, stack_global):
    module, _, attribute = name.rpartition(".")
    if stack_global:
        program = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(t)]) + t.encode() for t in (module, attribute)) + b"\x93."
    else:
        program = b"\x80\x02" + f"c{module}\n{attribute}\n.".encode()
    (tmp_path / "a.pkl").write_bytes(program)
    with pytest.raises(WeightsError, match=f"asks for {name},"):
        read_weights(tmp_path / "a.pkl")


STATE = b"}" + short("__defaults__") + b")s"


@pytest.mark.parametrize(
    "program",
    [
        # A state is set for a function, as attributes and as slots, for its result, and for a
        # function that is called in place of a class.
        b"ctorch._utils\n_rebuild_tensor_v2\n" + STATE + b"b.",
        b"ctorch._utils\n_rebuild_tensor_v2\nN" + STATE + b"\x86b.",
        b"ccollections\nOrderedDict\n" + STATE + b"b.",
        b"cnumpy\ndtype\n" + STATE + b"b.",
        b"ctorch\nSize\n)\x81.",
        # These are a tensor without a storage, an array of objects, an array that is larger than
        # its bytes, an extension, and a reference.
        b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))\x89}tR.",
        b"cnumpy\ndtype\n(" + short("O8") + b"K\x00K\x01tR.",
        b"cnumpy.core.numeric\n_frombuffer\n("
        + short("")
        + b"cnumpy\ndtype\n("
        + short("f4")
        + b"tR(J\xff\xff\xff\x7ft"
        + short("C")
        + b"tR.",
        b"\x82\x01.",
        b"Pkey\n.",
        b"K\x01Q.",
    ],
)
def test_a_pickle_that_bends_what_it_is_given_is_refused(tmp_path, program):
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + program)
    with pytest.raises(WeightsError, match=r"a\.pkl cannot be loaded: it "):
        read_weights(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (11,), (1,)), (9, (2,), (1,)), (0, (2, 5), (6, 1)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (-2,), (1,))],
)
def test_a_tensor_stays_inside_its_storage(offset, shape, strides):
    storage = Storage(np.dtype("f4"))
    storage.values = np.zeros(10, "f4")
    with pytest.raises(Malformed):
        Tensor(View(storage, 0), offset, shape, strides).array()


# ---- Files that do not contain weights, or are incomplete ----


@pytest.mark.parametrize("part", [0.02, 0.2, 0.5, 0.8, 0.95, 0.999])
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_cut_short_gives_a_sentence(tmp_path, name, part):
    path, _ = written(tmp_path, name)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(WeightsError) as refusal:
        read_weights(path)
    sentence = str(refusal.value)
    assert sentence.startswith(f"{path} cannot be loaded: it ")
    assert "\n" not in sentence


def rewritten(path: Path, change) -> None:
    """Rewrites a zip archive with other content in some entries."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in change(entries).items():
            archive.writestr(name, data)


def test_a_compressed_archive_is_read(tmp_path):
    path, named = written(tmp_path, "zip.pth")
    rewritten(path, lambda entries: entries)
    assert_same(read_weights(path), named)


def test_a_big_endian_file_is_refused(tmp_path):
    path, named = written(tmp_path, "zip.pth")
    rewritten(path, lambda entries: entries | {"archive/byteorder": b"big"})
    with pytest.raises(WeightsError, match="written on a big-endian machine"):
        read_weights(path)
    write_legacy(tmp_path / "b.pth", named, little_endian=False)
    with pytest.raises(WeightsError, match="written on a big-endian machine"):
        read_weights(tmp_path / "b.pth")


def test_missing_numbers_are_told(tmp_path):
    path, _ = written(tmp_path, "zip.pth")
    rewritten(path, lambda entries: {name: data for name, data in entries.items() if name != "archive/data/3"})
    with pytest.raises(WeightsError, match="numbers under data/3 are missing"):
        read_weights(path)


@pytest.mark.parametrize("name", ["zip.pth", "numpy.npz"])
def test_an_encrypted_archive_is_refused(tmp_path, name):
    path, _ = written(tmp_path, name)
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        position = data.find(signature)
        while position >= 0:
            data[position + flags] |= 1
            position = data.find(signature, position + 1)
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="encrypted"):
        read_weights(path)


def archive_of(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, data)
    return file.getvalue()


def of_objects() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.array([{}], object))
    return file.getvalue()


def safetensors_header(entry: object) -> bytes:
    text = json.dumps({"a": entry}).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * 8


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of Git LFS"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "none of the formats"),
        (archive_of("a.txt", b"text"), "a zip archive of something else"),
        (of_objects(), "its a.npy is an array of object; weights are arrays of plain numbers"),
        (pickle.dumps([1, 2, 3]), "it holds a list, not weights by name"),
        (pickle.dumps({"a": {"b": 1}}), "its entry 'a' is no tensor"),
        (pickle.dumps({1: np.ones(1)}), "its entry 1 is no tensor"),
        (pickle.dumps({}), "it holds a dict, not weights"),
        (safetensors_header({"dtype": "F4", "shape": [2], "data_offsets": [0, 8]}), "of a type that is not read: 'F4'"),
        (safetensors_header({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}), "the numbers of a are not there"),
        (safetensors_header({"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}), "its header is not valid"),
        (safetensors_header([]), "its header is not valid"),
    ],
)
def test_what_is_no_weights_is_told(tmp_path, content, sentence):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=sentence):
        read_weights(path)


def test_nothing_there(tmp_path):
    with pytest.raises(WeightsError, match=r"no weights at .*nowhere\.pth; give a \.pth"):
        read_weights(tmp_path / "nowhere.pth")


def test_neither_torch_nor_safetensors_is_imported(tmp_path):
    """This is tested in a separate process, because other tests import torch."""
    for name in WRITERS:
        written(tmp_path, name)
    script = (
        "import sys, pathlib, jaxseg; from jaxseg.weights.formats.readers import read_weights\n"
        f"for path in pathlib.Path({str(tmp_path)!r}).iterdir(): read_weights(path)\n"
        "assert not {'torch', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent.parent)
