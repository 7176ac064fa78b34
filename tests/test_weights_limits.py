"""Malicious files of weights that would use up all memory, time or stack.

Each file is refused in one sentence, within limits of memory and time. It is read in a separate
process, a fork of one that has imported the package, so that its memory can be measured.
"""

import functools
import json
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from test_weights_readers import MAGIC, WRITERS, short, written

from jaxseg.weights.formats.files import WeightsError
from jaxseg.weights.formats.readers import read_weights

# The limits for reading a file: memory as a multiple of its size plus a number of bytes, and
# seconds, which are generous because the machine may be busy.
TIMES, BESIDE, SECONDS = 4, 100 * 2**20, 20
HARNESS = """
import json, os, pathlib, resource, signal, sys, time
from jaxseg.weights.formats.readers import read_weights

def outcome(path):
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    try:
        kind, sentence = "read", str(len(read_weights(path)))
    except Exception as error:
        kind, sentence = type(error).__name__, str(error)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kind, sentence, 1024 * (after - before), time.monotonic() - begin

for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    child = os.fork()
    if not child:
        signal.alarm(int(sys.argv[2]))
        resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))
        print(json.dumps([path.name, path.stat().st_size, *outcome(path)]), flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        print(json.dumps([path.name, path.stat().st_size, f"signal {status & 127}", "", 0, 0]), flush=True)
"""
# ---- Pieces of pickles ----

TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
DTYPE = b"cnumpy\ndtype\n(" + short("f4") + b"K\x00K\x01tR"
FROM_BUFFER = b"cnumpy.core.numeric\n_frombuffer\n"
# A tuple that contains a tuple twice, 40 levels deep: its hash and its text take 2**40 steps. The
# content of the stack below it does not matter.
TUPLES = b"Nq\x00" + b"h\x00h\x00\x86q\x00" * 40
THE_TUPLES = b"h\x00"


def whole(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG4 + struct.pack("<I", len(data)) + data


def wholes(*values: int) -> bytes:
    return b"(" + b"".join(map(whole, values)) + b"t"


def text(content: bytes) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(content)) + content


def entry(value: bytes, name: bytes = text(b"a"), before: bytes = b"") -> bytes:
    """Makes a pickle of a dictionary with one entry."""
    return b"\x80\x02" + before + b"}" + name + value + b"s."


def array(shape: bytes, data: bytes = text(b"")) -> bytes:
    return FROM_BUFFER + b"(" + data + DTYPE + shape + short("C") + b"tR"


def reference(key: bytes = short("0"), count: bytes = whole(4)) -> bytes:
    return b"(" + short("storage") + b"ctorch\nFloatStorage\n" + key + short("cpu") + count + b"tQ"


def tensor(shape: bytes, strides: bytes, storage: bytes | None = None) -> bytes:
    return TENSOR + b"(" + (storage or reference()) + b"K\x00" + shape + strides + b"\x89}tR"


# ---- Containers ----


def archive(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = BytesIO()
    # The fastest compression reduces zeros to 1/200 of their size.
    with zipfile.ZipFile(file, "w", method, compresslevel=1) as opened:
        for name, data in entries.items():
            opened.writestr(name, data)
    return file.getvalue()


def torch_zip(program: bytes, numbers: bytes = bytes(16)) -> bytes:
    return archive({"archive/data.pkl": program, "archive/data/0": numbers})


def stream(tree: bytes, keys: bytes = b"\x80\x02].", version: bytes = b"M\xe9\x03.") -> bytes:
    return pickle.dumps(MAGIC, 2) + version + pickle.dumps({"little_endian": True}, 2) + tree + keys


def npy(values: np.ndarray) -> bytes:
    file = BytesIO()
    np.save(file, values)
    return file.getvalue()


def npy_of(shape: str, data: bytes = b"", code: str = "<f4") -> bytes:
    head = f"{{'descr':'{code}','fortran_order':False,'shape':{shape}}}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + data


@functools.cache
def bomb(name: str, start: bytes = b"") -> bytes:
    """Makes an archive of half a megabyte that contains 120 MB of zeros."""
    entries = {name: start + bytes(120_000_000)} | ({} if name.endswith((".pkl", ".npy")) else {"archive/data.pkl": big_tensor()})
    return archive(entries, zipfile.ZIP_DEFLATED)


def lying_bomb(name: str) -> bytes:
    """Makes the same archive with a header that claims a content of 1 MB."""
    made = bytearray(bomb(name))
    for signature, place in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        position = made.find(signature) + place
        made[position : position + 4] = struct.pack("<I", 1_000_000)
    return bytes(made)


def big_tensor() -> bytes:
    return entry(tensor(wholes(30_000_000), wholes(1), reference(count=whole(30_000_000))))


def overlapping(count: int, size: int) -> bytes:
    """Makes a .npz whose many entries share their numbers, but have separate local headers."""
    data = npy(np.zeros(size // 4, np.float32))
    packed = zlib.compress(data, 9)[2:-4]
    sizes = struct.pack("<III", zlib.crc32(data), len(packed), len(data))
    local, directory = b"", b""
    for number in range(count):
        head = struct.pack("<HHHHH", 20, 0, 8, 0, 33) + sizes
        # The extra field of a local header extends over the headers behind it, up to the numbers.
        extra = (count - 1 - number) * 40
        directory += b"PK\x01\x02\x14\x00" + head + struct.pack("<HHHHHII", 10, 0, 0, 0, 0, 0, len(local)) + b"%06d.npy" % number
        local += b"PK\x03\x04" + head + struct.pack("<HH", 10, extra) + b"%06d.npy" % number
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(local) + len(packed), 0)
    return local + packed + directory + b"PK\x05\x06" + end


def crowded(count: int, declared: int | None = None) -> bytes:
    """Makes an archive of many entries without content."""
    directory = (b"PK\x01\x02" + struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 0, 0, 0, 33, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0)) + b"%06d"
    data = b"".join(directory % number for number in range(count))
    end = struct.pack("<HHHHIIH", 0, 0, 65535, 65535, declared or len(data), 0, 0)
    return b"PK\x03\x04" + data + b"PK\x05\x06" + end


def safetensors(header: str | bytes, length: int | None = None) -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(16)


def safetensor(shape: str, offsets: str = "[0,16]", name: str = "a") -> bytes:
    return safetensors('{"%s":{"dtype":"F32","shape":%s,"data_offsets":%s}}' % (name, shape, offsets))  # noqa: UP031


# ---- The files ----

TINY = {
    "a list": b"(" + b"]" * 5_000_000 + b"l.",
    "a place in the memo": b"]" + b"\x94" * 5_000_000 + b".",
    "an array": FROM_BUFFER + b"q\x00(" + text(b"") + DTYPE + wholes(0) + short("C") + b"tq\x01(" + b"h\x00h\x01R" * 60_000 + b"l.",
    "a list in a list": b"]" * 100_000 + b"a" * 99_999 + b".",
    "a tuple in a tuple": b")" + b"\x85" * 100_000 + b".",
    "a dictionary in a dictionary": b"}" + b"N}" * 50_000 + b"s" * 50_000 + b".",
    "an ordered dictionary in one": b"ccollections\nOrderedDict\nq\x00)R" + b"Nh\x00)R" * 50_000 + b"s" * 50_000 + b".",
}
HUGE = 2**40
PICKLES: dict[str, bytes] = {
    "a memo index of 2**28 in a pickle of 9 bytes": b"\x80\x02Nr" + struct.pack("<I", 2**28) + b".",
    "a memo index of ten digits": b"\x80\x02Np2147483648\n.",
    "a text of 2**40 bytes": b"\x80\x04\x8d" + struct.pack("<Q", HUGE) + b"a.",
    "bytes of 2**40 bytes": b"\x80\x04\x8e" + struct.pack("<Q", HUGE) + b"a.",
    "a changeable row of 2**40 bytes": b"\x80\x05\x96" + struct.pack("<Q", HUGE) + b"a.",
    "a frame of 2**40 bytes": b"\x80\x04\x95" + struct.pack("<Q", HUGE) + b"a.",
    "bytes of 4 GB": b"\x80\x03B\xff\xff\xff\xffa.",
    "a text of 4 GB": b"\x80\x02X\xff\xff\xff\xffa.",
    "an old text of a negative length": b"\x80\x02T\xff\xff\xff\xffa.",
    "a whole number of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7fa.",
    "a whole number of 10 MB": entry(pickle.LONG4 + struct.pack("<I", 10_000_000) + b"\x01" * 10_000_000),
    "a whole number of a million decimals": entry(b"L" + b"7" * 1_000_000 + b"L\n"),
    "a size of 5,000 digits": entry(array(b"(" + whole(10**5000) + b"t")),
    "a type whose code is a number of 5,000 digits": entry(b"cnumpy\ndtype\n(" + whole(10**5000) + b"tR"),
    "a key that is a tuple of tuples, 40 times over": entry(b"N", THE_TUPLES, TUPLES),
    "a type whose code is a tuple of tuples, 40 times over": entry(b"cnumpy\ndtype\n(" + THE_TUPLES + b"K\x00K\x01tR", before=TUPLES),
    "a shape that is a tuple of tuples, 40 times over": entry(array(THE_TUPLES), before=TUPLES),
    "keys of one hash": b"\x80\x02}(" + b"".join(whole(k * (2**61 - 1)) + b"N" for k in range(1, 60_000)) + b"u.",
    "a shape of 2**70": entry(array(wholes(2**70, 0))),
    "a shape that is negative": entry(array(wholes(-1, -1), text(bytes(4)))),
    "a shape of 100 axes": entry(array(wholes(*[1] * 100), text(bytes(4)))),
    "a shape whose product is too large": entry(array(wholes(0, 2**40, 2**40))),
    "a shape of truth values": entry(array(b"\x88\x85", text(bytes(4)))),
    "one character that makes 30 MB of text four times as large": entry(b"N", text(b"a" * 30_000_000 + "\U0001f40d".encode())),
    "the same in a line of escapes": entry(b"N", b"V" + b"a" * 30_000_000 + b"\\U0001f40d\n"),
    "one text that is encoded again and again": b"\x80\x02c_codecs\nencode\nq\x00"
    + text(b"a" * 10_000_000)
    + b"q\x01("
    + b"h\x00h\x01\x85R" * 400
    + b"t.",
    "one text that is the data of many arrays": b"\x80\x02"
    + FROM_BUFFER
    + b"q\x00("
    + text(bytes(10_000_000))
    + DTYPE
    + wholes(2_500_000)
    + short("C")
    + b"tq\x01("
    + b"h\x00h\x01R" * 400
    + b"t.",
    "one dictionary that is copied again and again": b"\x80\x02ccollections\nCounter\nq\x00}("
    + b"".join(whole(k) + b"N" for k in range(50_000))
    + b"u\x85q\x01("
    + b"h\x00h\x01R" * 10_000
    + b"t.",
    "one list that is copied again and again": b"\x80\x02ccollections\nOrderedDict\nq\x00]("
    + b"NN\x86" * 50_000
    + b"e\x85q\x01("
    + b"h\x00h\x01R" * 100_000
    + b"t.",
    "a call with very many arguments, again and again": b"\x80\x02cnumpy\nndarray\nq\x00("
    + b"N" * 100_000
    + b"tq\x01("
    + b"h\x00h\x01R" * 100_000
    + b"t.",
    "a name of 10 MB": entry(array(wholes(0)), text(b"a" * 10_000_000)),
    "a name with a NUL": entry(array(wholes(0)), text(b"a\x00b")),
    "a name of two lines": entry(array(wholes(0)), text(b"a\nb")),
    "a name with half a character": entry(array(wholes(0)), text(b"\xed\xa0\x80")),
    "a dictionary that holds itself": b"\x80\x02}q\x00" + short("model") + b"h\x00s.",
    "a function of 10 MB": b"\x80\x04" + text(b"a" * 10_000_000) + b"q\x00h\x00\x93.",
    **{f"very many instructions, each {what}": b"\x80\x04" + program for what, program in TINY.items()},
}
ZIPS: dict[str, Callable[[], bytes]] = {
    "a tensor of 2**70 numbers": lambda: torch_zip(entry(tensor(wholes(2**70), wholes(1)))),
    "a tensor of 0 times 2**70 numbers": lambda: torch_zip(entry(tensor(wholes(0, 2**70), wholes(1, 1)))),
    "a tensor of 0 times 2**80 numbers": lambda: torch_zip(entry(tensor(wholes(0, 2**40, 2**40), wholes(1, 1, 1)))),
    "a tensor of 100 axes": lambda: torch_zip(entry(tensor(wholes(*[1] * 100), wholes(*[1] * 100)))),
    "a tensor of negative sizes": lambda: torch_zip(entry(tensor(wholes(-2, -2), wholes(1, 1)))),
    "a tensor that repeats one number 2**50 times": lambda: torch_zip(entry(tensor(wholes(2**50), wholes(0)))),
    "a storage whose key is a tuple of tuples": lambda: torch_zip(
        entry(tensor(wholes(4), wholes(1), reference(THE_TUPLES)), before=TUPLES)
    ),
    "a storage of 2**70 numbers": lambda: torch_zip(entry(tensor(wholes(4), wholes(1), reference(count=whole(2**70))))),
    "a storage of negatively many numbers": lambda: torch_zip(entry(tensor(wholes(4), wholes(1), reference(count=whole(-4))))),
    "a storage that is told twice, in different sizes": lambda: torch_zip(
        b"\x80\x02(" + reference(count=whole(4)) + reference(count=whole(3)) + b"t."
    ),
    "numbers that unpack to 200 times the file": lambda: bomb("archive/data/0"),
    "numbers that unpack to more than is told": lambda: lying_bomb("archive/data/0"),
    "a pickle that unpacks to 200 times the file": lambda: bomb("archive/data.pkl"),
    "a pickle that unpacks to more than is told": lambda: lying_bomb("archive/data.pkl"),
    "a byte order that unpacks to 200 times the file": lambda: bomb("archive/byteorder"),
    "an array that unpacks to 200 times the file": lambda: bomb("a.npy", npy_of("(1,)")),
    "arrays that overlap": lambda: overlapping(1000, 1_000_000),
    "a directory of 300,000 entries": lambda: crowded(300_000),
    "a directory that is said to have 4 GB": lambda: crowded(1000, 2**32 - 2),
    "bzip2": lambda: archive({"a.npy": npy(np.zeros(1_000_000))}, zipfile.ZIP_BZIP2),
    "LZMA": lambda: archive({"a.npy": npy(np.zeros(100))}, zipfile.ZIP_LZMA),
    "an array of 2**40 numbers": lambda: archive({"a.npy": npy_of(f"({2**40},)")}),
    "an array of 2**70 numbers": lambda: archive({"a.npy": npy_of(f"(0,{2**70})")}),
    "an array of negative sizes": lambda: archive({"a.npy": npy_of("(-1,-1)", bytes(4))}),
    "an array of 100 axes": lambda: archive({"a.npy": npy_of(f"({'1,' * 100})", bytes(4))}),
    "an array with a head of 60 KB": lambda: archive({"a.npy": npy_of("[" * 60_000)}),
    "an array whose numbers have no size": lambda: archive({"a.npy": npy_of("(7,)", code="<V0")}),
}
STREAMS: dict[str, bytes] = {
    "a version of 5,000 digits": stream(b"", version=whole(10**5000) + b"."),
    "a version that is a tuple of tuples": stream(b"", version=TUPLES + b"."),
    "a storage whose name is a list": stream(b"}.", b"]]a."),
    "a storage whose name is a tuple of tuples": stream(b"}.", TUPLES + b"]h\x00a."),
    "very many storages": stream(b"}.", b"(" + b"]" * 400_000 + b"l."),
    "a storage of 2**62 numbers": stream(entry(tensor(wholes(4), wholes(1), reference(count=whole(2**62)))), b"]" + short("0") + b"a."),
}
SAFETENSORS: dict[str, Callable[[], bytes]] = {
    "a header of 2**63 bytes": lambda: safetensors("{}", 2**63),
    "a header longer than the file": lambda: safetensors("{}", 100),
    "a header of 30 MB of empty lists": lambda: safetensors('{"a":[' + "[]," * 10_000_000 + "[]]}"),
    "a header of 2 MB of empty lists": lambda: safetensors('{"a":[' + "[]," * 690_000 + "[]]}"),
    "a header of 2 MB of names": lambda: safetensors("{" + ",".join(f'"{k}":[]' for k in range(150_000)) + "}"),
    "lists that are nested very deeply": lambda: safetensors('{"a":' + "[" * 1_000_000),
    "a size of 5,000 digits": lambda: safetensor("[" + "7" * 5000 + "]"),
    "sizes of 2**70 and 0": lambda: safetensor(f"[{2**70},0]", "[0,0]"),
    "sizes of 2**40, 2**40 and 0": lambda: safetensor(f"[{2**40},{2**40},0]", "[0,0]"),
    "sizes of -1 and -4": lambda: safetensor("[-1,-4]"),
    "100 axes": lambda: safetensor("[" + "1," * 99 + "4]"),
    "sizes that are no whole numbers": lambda: safetensor("[4.0]"),
    "sizes that are truth values": lambda: safetensor("[true,4]"),
    "places that are no whole numbers": lambda: safetensor("[4]", "[0.0,16.0]"),
    "places that are truth values": lambda: safetensor("[0]", "[false,false]"),
    "a name with half a character": lambda: safetensor("[4]", name="\\ud800"),
    "a name with half a character, and no numbers": lambda: safetensor("[4]", "[0,1]", "\\ud800"),
    "a name with a NUL": lambda: safetensor("[4]", name="\\u0000"),
    "a name twice": lambda: safetensor("[4]", name='a":1,"a'),
    "a type that is a list": lambda: safetensors('{"a":{"dtype":[],"shape":[],"data_offsets":[0,0]}}'),
    "a file of 5 bytes": lambda: b"{}{}{",
    "nothing but a length": lambda: struct.pack("<Q", 2) + b"{",
}
FILES: dict[str, Callable[[], bytes]] = {
    **{f"a pickle with {name}": lambda data=data: data for name, data in PICKLES.items()},
    **{f"an archive with {name}": make for name, make in ZIPS.items()},
    **{f"a stream with {name}": lambda data=data: data for name, data in STREAMS.items()},
    **{f"a safetensors file with {name}": make for name, make in SAFETENSORS.items()},
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Returns the size of each file, the outcome of reading it, and the bytes and seconds used."""
    folder = tmp_path_factory.mktemp("files")
    for number, make in enumerate(FILES.values()):
        # Some pickles here lack the first instruction, and are recognised by their file names.
        (folder / f"{number}.pkl").write_bytes(make())
    for name, write in WRITERS.items():
        write(folder / name, {"a": np.random.default_rng(0).normal(size=(50, 50_000)).astype(np.float32)})
    command = [sys.executable, "-c", HARNESS, str(folder), str(SECONDS)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent).stdout.splitlines()
    return {name: result for name, *result in map(json.loads, lines)}


@pytest.mark.parametrize(("number", "name"), list(enumerate(FILES)), ids=list(FILES))
def test_a_file_that_takes_too_much_is_refused_in_a_sentence(outcomes, number, name):
    size, kind, sentence, grown, _ = outcomes[f"{number}.pkl"]
    assert kind == "WeightsError", sentence
    assert f"{number}.pkl cannot be loaded: it" in sentence
    assert sentence.isprintable()
    assert len(sentence) < 1000
    assert grown < TIMES * size + BESIDE


@pytest.mark.parametrize("name", WRITERS)
def test_weights_take_less_than_four_times_their_file(outcomes, name):
    size, kind, _, grown, _ = outcomes[name]
    assert kind == "read"
    assert grown < TIMES * size


def test_the_limits_are_told(outcomes):
    """A user can reach these limits with a harmless file, so the message says what to do."""
    sentences = {name: outcomes[f"{number}.pkl"][2] for number, name in enumerate(FILES)}
    unpacks = "it takes up to 120 MB of memory, unpacked from 0.5 MB; save it without compression."
    assert sentences["an archive with an array that unpacks to 200 times the file"].endswith(unpacks)
    assert sentences["an archive with bzip2"].endswith("save it without compression.")
    assert "too many for weights; save the state_dict() alone." in sentences["a pickle with very many instructions, each a list"]
    assert "over ten thousand; save the state_dict() alone." in sentences["an archive with a directory of 300,000 entries"]
    assert "a header of 30.0 MB, too long for weights" in sentences["a safetensors file with a header of 30 MB of empty lists"]


# ---- Files from Python 2 ----

VALUES = np.array([1.5, -2, 3e9], "<f4")
IN_PROTOCOL_0 = (
    b"(dp0\nS'a'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\ntp6\nRp7\n(I1\n(I3\ntp8\n"
    b"cnumpy\ndtype\np9\n(S'f4'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'<'\np13\nNNNI-1\nI-1\nI0\ntp14\nbI00\nS"
    + repr(VALUES.tobytes())[1:].encode()
    + b"\np15\ntp16\nbs"
)
IN_PROTOCOL_2 = (
    b"cnumpy.core.multiarray\n_reconstruct\nq\x04cnumpy\nndarray\nq\x05K\x00\x85q\x06U\x01bq\x07\x87q\x08Rq\x09(K\x01K\x03\x85q\x0a"
    b"cnumpy\ndtype\nq\x0bU\x02f4q\x0cK\x00K\x01\x87q\x0dRq\x0e(K\x03U\x01<q\x0fNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x10b\x89T\x0c\0\0\0"
    + VALUES.tobytes()
    + b"q\x11tq\x12b"
)


@pytest.mark.parametrize(
    "program",
    [
        b"(S'blobs'\n" + IN_PROTOCOL_0 + b"S'cfg'\nS'a\\nb'\nV\\u00e9poch\np17\nL3L\nS'rate'\nF0.1\nd.",
        b"\x80\x02}q\x00U\x05blobsq\x01}q\x02(U\x01aq\x03" + IN_PROTOCOL_2 + b"us.",
        b"\x80\x02}q\x00U\x05modelccollections\nOrderedDict\nq\x01]q\x02]q\x03(U\x01a" + IN_PROTOCOL_2 + b"ea\x85Rs.",
    ],
    ids=["protocol 0", "protocol 2", "an ordered dictionary"],
)
def test_arrays_of_python_2(tmp_path, program):
    (tmp_path / "a.pkl").write_bytes(program)
    np.testing.assert_array_equal(read_weights(tmp_path / "a.pkl")["a"], VALUES)


# ---- Noise ----

ARGUMENTS = {None: 0, "uint1": 1, "uint2": 2, "int4": 4, "uint4": 4, "uint8": 8, "float8": 8}
NAMES = ["collections OrderedDict", "torch FloatStorage", "torch Size", "torch._utils _rebuild_tensor_v2", "numpy dtype", "_codecs encode"]


def instruction(rng: random.Random) -> bytes:
    """Makes a random instruction, mostly with an argument of the right form and a small value."""
    opcode = rng.choice(pickletools.opcodes)
    kind = opcode.arg and opcode.arg.name
    if kind in ARGUMENTS:
        argument = rng.randrange(8).to_bytes(ARGUMENTS[kind], "little") if ARGUMENTS[kind] else b""
    elif kind.endswith("pair"):
        argument = rng.choice(NAMES).replace(" ", "\n").encode() + b"\n"
    elif "nl" in kind:
        argument = rng.choice([b"1\n", b"'f4'\n", b"-7\n", b"storage\n"])
    else:
        data = rng.choice([b"", b"f4", b"storage", b"0", rng.randbytes(4)])
        argument = len(data).to_bytes(int(kind[-1]), "little") + data
    return opcode.code.encode("latin1") + (argument if rng.random() < 0.95 else rng.randbytes(3))


def test_noise_gives_sentences_only(tmp_path):
    """The files are programs of random instructions, on a stack with a value of each type."""
    rng, begin = random.Random(0), time.monotonic()
    stock = b"(](})N" + b"".join(b"c" + name.replace(" ", "\n").encode() + b"\n" for name in NAMES) + DTYPE + reference() + array(wholes(0))
    for number in range(600):
        program = b"\x80\x04" + stock + b"".join(instruction(rng) for _ in range(rng.randrange(1, 30))) + b"."
        path = tmp_path / "a.pkl"
        path.write_bytes([lambda p: p, torch_zip, stream][number % 3](program))
        with pytest.raises(WeightsError, match=r"a\.pkl cannot be loaded: it"):
            read_weights(path)
    assert time.monotonic() - begin < SECONDS


def refusal(path: Path) -> str:
    """Returns the error message, or an empty text if the file can be read."""
    try:
        read_weights(path)
    except WeightsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_with_errors_gives_weights_or_a_sentence(tmp_path, name):
    rng = random.Random(0)
    path, _ = written(tmp_path, name)
    whole = path.read_bytes()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 2, 5])):
            place = rng.randrange(len(data))
            data[place : place + rng.choice([0, 1, 8])] = rng.choice([rng.randbytes(1), b"", b"\xff" * 8, bytes(8), b"\xff\xff\xff\x7f"])
        path.write_bytes(data)
        assert refusal(path).isprintable()
