"""Torch files are read as tensors that lie in them and nothing else, whatever their archive and pickle say."""

import io
import pickle
import struct
import tracemalloc
import zipfile

import pytest
import torch

from microdit.checkpoints.archive import check_growth, check_torch_archive, check_torch_file


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "saved.pt"
    tensors = {
        "a": torch.randn(5, 3),
        "b": torch.zeros(2, dtype=torch.bfloat16),
        "c": torch.nn.Parameter(torch.ones(1)),
    }
    torch.save({"tensors": tensors, "size": torch.Size([2]), "kind": torch.float16, "plain": [1, None, "x", 0.5]}, path)
    return path


def rewritten(path, changed, packing=zipfile.ZIP_STORED):
    """The same archive by Python's writer, with other contents for some members."""
    with zipfile.ZipFile(path) as archive:
        held = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in held.items():
            archive.writestr(name, changed.get(name.rpartition("/")[2], content))


def test_what_torch_writes_is_read_alone_and_inside_another_file(saved):
    check_torch_file(saved)
    inside = io.BytesIO(b"before" + saved.read_bytes() + b"after")
    check_torch_archive(inside, 6, saved.stat().st_size)
    rewritten(saved, {})
    check_torch_file(saved)
    assert torch.load(saved, weights_only=True)["plain"] == [1, None, "x", 0.5]


def test_a_packed_archive_is_refused(saved):
    rewritten(saved, {"data.pkl": b"(" * 1_000_000}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="packed archive"):
        check_torch_file(saved)


def nested_bytes() -> bytes:
    """Ten bytes, made twice as many again and again."""
    made = b"cbuiltins\nbytearray\n(X\x04\x00\x00\x00aaaaX\x06\x00\x00\x00latin1tR"
    return b"\x80\x02" + made + b"."


def encoded_text() -> bytes:
    return b"\x80\x02c_codecs\nencode\nX\x04\x00\x00\x00aaaaX\x06\x00\x00\x00latin1\x86R."


@pytest.mark.parametrize(
    ("pickled", "told"),
    [
        (nested_bytes(), "names builtins.bytearray, and tensors alone"),
        (encoded_text(), "names _codecs.encode"),
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", "names os.system"),
        (b"\x80\x02ctorch\nload\nX\x02\x00\x00\x00ls\x85R.", "names torch.load"),
        (pickle.dumps(bytearray(8), protocol=5), "uses"),
        (pickle.dumps(torch.Size, protocol=4), "uses STACK_GLOBAL"),
        (b"\x80\x02(\xff", "damaged|opcode"),
        (b"", "exhausted"),
    ],
)
def test_a_pickle_that_makes_anything_but_tensors_is_refused(saved, pickled, told):
    rewritten(saved, {"data.pkl": pickled})
    with pytest.raises(ValueError, match=told):
        check_torch_file(saved)


def doubled(times: int) -> bytes:
    """Tuples in tuples, each twice in the next, as the key of a dictionary: looked at as often as there are ways."""
    return b"\x80\x02})r\0\0\0\0" + b"j\0\0\0\0\x86r\0\0\0\0" * times + b"K\x01s."


def again(call: bytes, times: int) -> bytes:
    """A function and its arguments, remembered and called again and again."""
    return b"\x80\x02]" + call + b"0" + b"h\x00h\x01R0" * times + b"."


@pytest.mark.parametrize(
    ("pickled", "told"),
    [
        (doubled(60), "tuples in tuples"),
        (b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.", "tuples in tuples"),
        (again(b"ctorch\nSize\nq\x00((" + b"K\x01" * 20_000 + b"ttq\x01R", 400), "made before"),
        (b"\x80\x02\x8f.", "uses EMPTY_SET"),
    ],
)
def test_a_pickle_whose_few_bytes_become_much_is_refused(saved, pickled, told):
    rewritten(saved, {"data.pkl": pickled})
    with pytest.raises(ValueError, match=told):
        check_torch_file(saved)


def test_a_list_that_is_long_for_its_few_tensors_is_refused_before_it_is_looked_at(saved):
    """Each of its bytes would be a value in memory."""
    rewritten(saved, {"data.pkl": b"\x80\x02(" + b"N" * (4 << 20) + b"l."})
    with pytest.raises(ValueError, match=r"its list of tensors has 4,194,309 bytes, and \d+ members need"):
        check_torch_file(saved)


@pytest.mark.parametrize("step", [b"]", b"N0"])
def test_a_list_that_takes_more_steps_than_any_network_is_refused_after_these(saved, step):
    """Among members by the thousand, which cost next to nothing, it would not be long for them."""
    rewritten(saved, {"data.pkl": b"\x80\x02](" + step * (5_000_100 // len(step)) + b"e."})
    with zipfile.ZipFile(saved, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]
        for number in range(1_200):
            archive.writestr(f"{folder}/data/{100 + number}", b"")
    with pytest.raises(ValueError, match=r"takes over 5,000,000 steps to read"):
        check_torch_file(saved)


def test_plain_values_cost_no_memory_of_their_own():
    pickled = b"\x80\x02(" + b"N" * 100_000 + b"l."
    tracemalloc.start()
    check_growth(pickled)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 25 * len(pickled)  # lists of references to it, and not a value for each


@pytest.mark.parametrize("name", ["DATA.PKL", "Data.pkl", "data/../data.pkl", "code/x.py"])
def test_members_under_other_names_are_refused(saved, name):
    """Torch finds them whatever their capitals are."""
    with zipfile.ZipFile(saved, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/{name}", encoded_text())
    with pytest.raises(ValueError, match="has a member"):
        check_torch_file(saved)


def test_an_archive_with_two_directories_is_refused(saved):
    """Python would read one of them and torch the other."""
    harmless = saved.read_bytes()
    rewritten(saved, {"data.pkl": encoded_text()})
    other = saved.read_bytes()
    saved.write_bytes(other + harmless)
    with pytest.raises(ValueError, match=r"does not end where it should|two ends|not what its directory says"):
        check_torch_file(saved)


def test_an_archive_whose_ends_tell_different_things_is_refused(saved):
    content = bytearray(saved.read_bytes())
    *_, count, size, offset, comment = struct.unpack_from("<4sHHHHLLH", content, len(content) - 22)
    struct.pack_into("<L", content, len(content) - 22 + 16, offset - 1)
    saved.write_bytes(content)
    with pytest.raises(ValueError, match="told of twice"):
        check_torch_file(saved)
    assert count
    assert size
    assert not comment


def test_members_that_share_bytes_are_refused(saved):
    """A small file would be as large in memory as it has members."""
    content = bytearray(saved.read_bytes())
    first = content.index(b"PK\1\2")
    second = content.index(b"PK\1\2", first + 4)
    # A directory whose second entry is the first one's copy, under a name of the same length.
    length = second - first
    entry = bytearray(content[first:second])
    entry[46 + 5] ^= 1
    content[second:second] = entry
    for at, layout in ((len(content) - 22, "<4sHHHHLLH"), (len(content) - 22 - 20 - 56, "<4sQHHLLQQQQ")):
        fields = list(struct.unpack_from(layout, content, at))
        counts, size = ((3, 4), 5) if layout.endswith("H") else ((6, 7), 8)
        for field in counts:
            fields[field] += 1
        fields[size] += length
        struct.pack_into(layout, content, at, *fields)
    struct.pack_into("<Q", content, len(content) - 22 - 20 + 8, len(content) - 22 - 20 - 56)
    saved.write_bytes(content)
    with pytest.raises(ValueError, match=r"overlap|not what its directory says"):
        check_torch_file(saved)


@pytest.mark.parametrize("kept", [0, 10, 21, 22, 100, -1])
def test_a_file_that_ends_too_early_is_refused(saved, kept):
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(ValueError, match="no torch file"):
        check_torch_file(saved)
