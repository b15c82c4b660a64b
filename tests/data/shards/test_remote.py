import gzip
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from microdit.data.shards import remote
from microdit.data.shards.corruption import CorruptSampleError
from microdit.data.shards.remote import FileCache, RemoteFileError, UnfitFileError, fetch, local_copy
from microdit.data.sources.captioned import CaptionedImage
from microdit.data.sources.tars import TarSource
from microdit.data.stream.batches import GlobalBatches, LatentLoader
from microdit.data.stream.opening import open_mix
from microdit.data.stream.stream import Batch, LatentStream


class Server:
    """A web server on loopback that fails one request in five, in one of three ways."""

    def __init__(self, folder: Path, failing: bool = True) -> None:
        self.requests: list[str] = []
        self.failed = 0
        server = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments: object) -> None:
                super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

            def do_GET(self) -> None:
                server.requests.append(self.path)
                if not failing or len(server.requests) % 5:
                    super().do_GET()
                    return
                server.failed += 1
                kind = server.failed % 3
                if kind == 0:
                    self.send_error(503)
                elif kind == 1:  # promises more than it sends
                    self.send_response(200)
                    self.send_header("Content-Length", "100000")
                    self.end_headers()
                    self.wfile.write(b"x" * 1000)
                self.close_connection = True  # kind 2: hangs up without a word

            def end_headers(self) -> None:
                if self.path.endswith(".packed"):
                    self.send_header("Content-Encoding", "gzip")
                super().end_headers()

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # a reader that leaves early
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.001)

    def start(folder: Path, failing: bool = True) -> Server:
        servers.append(Server(folder, failing))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()


def opened(location: str, cache: Path | None, gigabytes: float = 1.0) -> LatentStream:
    return open_mix(
        [{"name": "data", "folder": location}],
        resolution_px=32,
        seed=3,
        autoencoder="small",
        text_encoder="short",
        cache_folder=str(cache) if cache else None,
        cache_gigabytes=gigabytes,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_training_reads_from_a_server_that_fails_one_request_in_five(
    tmp_path: Path, write_folder: Callable[..., Path], serve: Callable[..., Server], workers: int
) -> None:
    folder = write_folder(tmp_path / "data", [7] * 30)
    server = serve(folder)
    local, distant = opened(str(folder), None), opened(server.url, tmp_path / "cache")
    batches = list(islice(LatentLoader(distant, GlobalBatches(21), workers), 20))
    expected = local.__getitems__(range(420))
    for field in Batch.__required_keys__:
        assert torch.equal(torch.cat([batch[field] for batch in batches]), expected[field])
    assert server.failed >= 6
    assert not list((tmp_path / "cache").rglob("*.part")), "no half-written file is left"


def test_worker_processes_share_one_cache(
    tmp_path: Path, write_folder: Callable[..., Path], serve: Callable[..., Server]
) -> None:
    folder = write_folder(tmp_path / "data", [7] * 10)
    server = serve(folder, failing=False)
    stream = opened(server.url, tmp_path / "cache")
    stream.__getitems__(range(5))
    loader = DataLoader(stream, batch_sampler=GlobalBatches(10), collate_fn=lambda batch: batch, num_workers=2)
    found = torch.cat([batch["latents"] for batch in islice(loader, 14)])
    assert torch.equal(found, opened(str(folder), None).__getitems__(range(140))["latents"])
    tars = [path for path in server.requests if path.endswith(".tar")]
    assert sorted(tars) == sorted(set(tars)), "each shard is fetched once"


def test_the_cache_is_bounded_and_the_least_recently_used_goes_first(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    (tmp_path / "data").mkdir()
    for number in range(6):
        (tmp_path / f"data/{number}.tar").write_bytes(b"x" * 1000)
    server = serve(tmp_path / "data", failing=False)
    cache = FileCache(tmp_path / "cache", 3500)
    urls = [f"{server.url}/{number}.tar" for number in range(6)]
    for url in [*urls[:3], urls[0], urls[3], urls[0], urls[4]]:
        assert cache.local(url, 1000).stat().st_size == 1000
        assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) <= 3500
    kept = {path.name[-5] for path in (tmp_path / "cache").glob("*.tar")}
    assert kept == {"0", "3", "4"}


def test_a_cache_throws_out_what_it_fetched_and_nothing_else(tmp_path: Path, serve: Callable[..., Server]) -> None:
    (tmp_path / "data").mkdir()
    for number in range(3):
        (tmp_path / f"data/{number}.tar").write_bytes(b"x" * 1000)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.pdf").write_bytes(b"x" * 5000)
    url = serve(tmp_path / "data", failing=False).url
    cache = FileCache(tmp_path / "cache", 2500)
    for number in range(3):
        cache.local(f"{url}/{number}.tar", 1000)
    with pytest.raises(RemoteFileError, match=r"as its index says.* make that larger"):
        cache.local(f"{url}/3.tar", 10**15)
    there = sorted(path.name[-5:] for path in (tmp_path / "cache").glob("[!.]*"))
    assert there == ["1.tar", "2.tar", "s.pdf"]


def test_a_small_cache_still_gives_the_same_batches(
    tmp_path: Path, write_folder: Callable[..., Path], serve: Callable[..., Server]
) -> None:
    folder = write_folder(tmp_path / "data", [4] * 8)
    server = serve(folder)
    size = (folder / "00000.tar").stat().st_size
    distant = opened(server.url, tmp_path / "cache", gigabytes=2.5 * size / 1e9)
    batches = list(islice(LatentLoader(distant, GlobalBatches(8), workers=2), 8))
    assert torch.equal(
        torch.cat([batch["latents"] for batch in batches]), opened(str(folder), None).__getitems__(range(64))["latents"]
    )


def test_a_file_of_the_wrong_size_is_refused(tmp_path: Path, serve: Callable[..., Server]) -> None:
    (tmp_path / "short").write_bytes(b"x" * 10)
    server = serve(tmp_path, failing=False)
    with pytest.raises(RemoteFileError, match="got 10 bytes where 11 were expected"):
        FileCache(tmp_path / "cache", 100).local(f"{server.url}/short", 11)
    assert not list((tmp_path / "cache").glob("*short"))


@pytest.mark.parametrize(
    ("name", "content"),
    [("index.npz", b"<html>Please log in</html>"), ("index.npz", b""), ("dataset.json", b"<html>Please log in</html>")],
)
def test_what_a_server_sends_instead_of_an_index_is_named_and_not_kept(
    tmp_path: Path, write_folder: Callable[..., Path], serve: Callable[..., Server], name: str, content: bytes
) -> None:
    folder = write_folder(tmp_path / "data", [4])
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    url = serve(folder, failing=False).url
    with pytest.raises(UnfitFileError, match=rf"^{url}/{name} .*look at what the server sends"):
        opened(url, tmp_path / "cache")
    (folder / name).write_bytes(whole)
    assert len(opened(url, tmp_path / "cache")) == 4


def test_more_than_a_file_may_have_is_not_fetched(tmp_path: Path, serve: Callable[..., Server]) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(RemoteFileError, match="more than the 1,000 bytes that it may have"):
        fetch(f"{serve(tmp_path, failing=False).url}/large", tmp_path / "target", most_bytes=1000)
    with pytest.raises(RemoteFileError, match="more than the 11 bytes that it may have"):
        FileCache(tmp_path / "cache", 100).local(f"{serve(tmp_path, failing=False).url}/large", 11)
    assert (tmp_path / "target").stat().st_size < 1 << 24


def test_what_a_server_says_is_packed_is_kept_as_it_was_sent(tmp_path: Path, serve: Callable[..., Server]) -> None:
    (tmp_path / "zeros.packed").write_bytes(gzip.compress(bytes(1 << 24)))
    fetch(f"{serve(tmp_path, failing=False).url}/zeros.packed", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == (tmp_path / "zeros.packed").read_bytes()


def test_what_hardly_comes_is_given_up(
    tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow").write_bytes(b"x" * 1000)
    monkeypatch.setattr(remote, "SILENCE_S", 0.0)
    monkeypatch.setattr(remote, "SLOWEST", 1 << 60)
    monkeypatch.setattr(remote, "options_for", lambda url: {})
    with pytest.raises(RemoteFileError, match="only 1,000 bytes came in 0 s"):
        fetch(f"{serve(tmp_path, failing=False).url}/slow", tmp_path / "target")


def test_a_fetched_tar_is_written_through_no_link_that_waits_for_it(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    (tmp_path / "file").write_bytes(b"fetched")
    server = serve(tmp_path, failing=False)
    places = []
    for _ in range(2):
        with local_copy(f"{server.url}/file", tmp_path / "downloads") as path:
            assert path.read_bytes() == b"fetched"
            assert path.parent.stat().st_mode & 0o077 == 0
            places.append(path)
    assert places[0] != places[1]


@pytest.mark.parametrize("page", ["<a " + " " * 4000, "<a " + "x " * 2000, "<a href=" * 4000, "href" + " " * 1_000_000])
def test_a_listing_of_any_kind_is_read_soon(tmp_path: Path, serve: Callable[..., Server], page: str) -> None:
    (tmp_path / "index.html").write_text(f'{page} <a HREF="0.tar">0</a><a href="/a/1.tar"><a href="notes.txt">')
    url = serve(tmp_path, failing=False).url
    started = time.monotonic()
    assert TarSource(url).shards() == [f"{url}/0.tar"]
    assert time.monotonic() - started < 5


def test_a_folder_of_a_web_server_is_named_whole(tmp_path: Path, serve: Callable[..., Server]) -> None:
    with pytest.raises(RemoteFileError, match="in the name of the file alone"):
        TarSource(f"{serve(tmp_path).url}/*/0.tar").shards()


def test_a_missing_remote_shard_follows_on_corrupt(
    tmp_path: Path, write_folder: Callable[..., Path], serve: Callable[..., Server]
) -> None:
    folder = write_folder(tmp_path / "data", [4, 4])
    (folder / "00001.tar").unlink()
    stream = opened(serve(folder, failing=False).url, tmp_path / "cache")
    with pytest.raises(CorruptSampleError, match=r"http://.*/00001\.tar: .*does not exist"):
        stream.__getitems__(range(8))


def test_a_server_that_never_answers_well_ends_with_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.0001)
    with pytest.raises(RemoteFileError, match="8 attempts"):
        fetch("http://127.0.0.1:1/00000.tar", tmp_path / "target")


def test_remote_data_without_a_place_to_keep_it_is_refused() -> None:
    with pytest.raises(ValueError, match="cache_folder"):
        opened("http://127.0.0.1:1/data", None)


def test_pictures_are_prepared_from_remote_tars(tmp_path: Path, serve: Callable[..., Server]) -> None:
    import webdataset

    (tmp_path / "tars").mkdir()
    for shard in range(3):
        with webdataset.TarWriter(str(tmp_path / f"tars/{shard}.tar")) as writer:
            writer.write({"__key__": f"{shard}", "jpg": b"picture", "txt": f"words {shard}"})
    server = serve(tmp_path / "tars")
    source = TarSource(f"{server.url}/{{0..2}}.tar", download_folder=str(tmp_path / "downloads"))
    found = [item for shard in range(3) for item in source.read(shard)]
    assert [item.captions for item in found if isinstance(item, CaptionedImage)] == [
        ["words 0"],
        ["words 1"],
        ["words 2"],
    ]
    assert not list((tmp_path / "downloads").iterdir()), "nothing stays behind"


def test_a_server_that_lists_its_files_is_a_folder_of_tars(tmp_path: Path, serve: Callable[..., Server]) -> None:
    for name in ("0.tar", "1.tar", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    url = serve(tmp_path, failing=False).url
    assert TarSource(url).shards() == TarSource(f"{url}/*.tar").shards() == [f"{url}/0.tar", f"{url}/1.tar"]
    with pytest.raises(FileNotFoundError, match="there is no tar"):
        TarSource(f"{url}/nothing").shards()
    with pytest.raises(RemoteFileError, match="cannot be listed"):
        TarSource("http://127.0.0.1:1/tars").shards()


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "github://a:b@/c",
        "ssh://host/file",
        "simplecache::http://host/a",
        "zip://a::http://host/b",
    ],
)
def test_addresses_are_those_of_files_on_servers(tmp_path, url):
    with pytest.raises(RemoteFileError, match="addresses begin with https://"):
        fetch(url, tmp_path / "target")
    assert not (tmp_path / "target").exists()
