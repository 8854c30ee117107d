"""Downloads against a server of our own: cut and resumed, ranges ignored or refused, checksums, one line each time."""

import hashlib
import http.server
import io
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from seqformer import InputError, download

BLOB = np.random.default_rng(0).bytes(3_000_000)
MD5 = hashlib.md5(BLOB).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``server.content``; ``mode``: ranges, no_ranges, wrong_range, chunked; cuts after ``cut`` bytes."""

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if not self.path.endswith(".tar.gz"):
            return self.send_error(404)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.mode != "no_ranges" else 0
        size = len(server.content)
        if start >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if asked and server.mode != "no_ranges" else 200)
        if asked and server.mode != "no_ranges":
            self.send_header("Content-Range", f"bytes {start + (server.mode == 'wrong_range')}-{size - 1}/{size}")
        if server.mode != "chunked":
            self.send_header("Content-Length", str(size - start))
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if server.mode == "chunked":
            self.wfile.write(f"{size - start:x}\r\n".encode())
        self.wfile.write(server.content[start : start + server.cut if server.cut else None])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.mode, server.cut, server.asked = BLOB, "ranges", 0, []
        server.base = f"http://127.0.0.1:{server.server_port}/resources"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(server, path: Path, md5: str = MD5) -> list[tuple[int, int]]:
    told = []
    download.fetch(f"{server.base}/12/a.tar.gz", path, md5, lambda *values: told.append(values))
    return told


def refusal(server, path: Path, md5: str = MD5) -> str:
    with pytest.raises(InputError) as caught:
        fetch(server, path, md5)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_download_cut_again_and_again_goes_on(server, tmp_path):
    path, part, server.cut = tmp_path / "new" / "a.tar.gz", tmp_path / "new" / "a.tar.gz.part", 1_200_000
    for size in (1_200_000, 2_400_000):
        message = refusal(server, path)
        assert f"connection was lost at {size / 1e6:.1f} MB of 3.0 MB; call again to go on from" in message
        assert part.read_bytes() == BLOB[:size] and not path.exists()
    told = fetch(server, path)
    assert path.read_bytes() == BLOB and not part.exists() and told[-1] == (3_000_000, 3_000_000)
    assert told[0][0] > 2_400_000 and [done for done, _ in told] == sorted({done for done, _ in told})
    assert server.asked == [None, "bytes=1200000-", "bytes=2400000-"]
    fetch(server, path)
    assert len(server.asked) == 3  # it is there: the checksum is looked at, the server is not asked


def test_a_cut_is_noticed_where_the_length_is_not_told(server, tmp_path, monkeypatch):
    monkeypatch.setattr(Handler, "protocol_version", "HTTP/1.1")
    server.mode, server.cut = "chunked", 1_500_000
    assert "the connection was lost at 1.0 MB; call again to go on from 1.0 MB" in refusal(
        server, tmp_path / "a.tar.gz"
    )
    server.mode, server.cut = "ranges", 0
    fetch(server, tmp_path / "a.tar.gz")
    assert server.asked == [None, f"bytes={download.BLOCK}-"]


def test_a_server_that_ignores_ranges_makes_it_start_again(server, tmp_path):
    (tmp_path / "a.tar.gz.part").write_bytes(b"x" * 1000)
    server.mode = "no_ranges"
    fetch(server, tmp_path / "a.tar.gz")
    assert (tmp_path / "a.tar.gz").read_bytes() == BLOB and server.asked == ["bytes=1000-"]


def test_another_range_than_asked_for_is_not_appended(server, tmp_path):
    part = tmp_path / "a.tar.gz.part"
    part.write_bytes(BLOB[:1000])
    server.mode = "wrong_range"
    assert "another range than was asked for" in refusal(server, tmp_path / "a.tar.gz")
    assert part.read_bytes() == BLOB[:1000]


def test_a_part_that_is_whole_or_too_long(server, tmp_path):
    path, part = tmp_path / "a.tar.gz", tmp_path / "a.tar.gz.part"
    part.write_bytes(BLOB)  # killed between the last byte and the renaming
    fetch(server, path)
    assert path.read_bytes() == BLOB and not part.exists()
    path.unlink()
    part.write_bytes(BLOB + b"more")
    assert "is longer than" in refusal(server, path) and not part.exists()
    assert (tmp_path / "a.tar.gz.wrong").exists()
    fetch(server, path)


def test_a_wrong_checksum_sets_the_file_aside(server, tmp_path):
    path, aside = tmp_path / "a.tar.gz", tmp_path / "a.tar.gz.wrong"
    message = refusal(server, path, md5="0" * 32)
    assert f"a.tar.gz has the MD5 {MD5}, published is {'0' * 32}; renamed to {aside}" in message
    assert [file.name for file in tmp_path.iterdir()] == [aside.name] and aside.read_bytes() == BLOB
    path.write_bytes(b"another file of that name")
    assert "another" not in refusal(server, path) and not path.exists()
    fetch(server, path)
    assert path.read_bytes() == BLOB


def test_no_server_no_file_no_room_no_address(server, tmp_path, monkeypatch):
    path = tmp_path / "a.tar.gz"
    with pytest.raises(InputError, match=r"b\.zip: the server says 404 Not Found"):
        download.fetch(f"{server.base}/b.zip", path, MD5)
    with pytest.raises(InputError, match="expected an address that begins with http"):
        download.fetch("file:///etc/hostname", path, MD5)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**6}))
    assert "has 1.0 MB free, a.tar.gz.part needs 3.0 MB more" in refusal(server, path)
    server.shutdown()
    server.server_close()
    (tmp_path / "a.tar.gz.part").write_bytes(BLOB[:500_000])
    assert "Connection refused" in (message := refusal(server, path)) and "call again to go on from 0.5 MB" in message


def test_the_command(server, tmp_path, program, monkeypatch):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("LibriSpeech/README.TXT"))
    server.content = packed.getvalue()
    part = download.Archive("12/dev-clean.tar.gz", hashlib.md5(server.content).hexdigest())
    monkeypatch.setitem(download.CORPORA["librispeech"], "dev-clean", part)
    command = ("download", "librispeech", "--out", tmp_path, "--mirror", f"{server.base}/")
    code, out, _ = program(*command, "--part", "dev-clean", "--unpack")
    assert code == 0 and (tmp_path / "LibriSpeech" / "README.TXT").exists()
    assert f"dev-clean.tar.gz: {len(server.content)} bytes, MD5 as published" in out
    for arguments, message in [
        ((), "librispeech has several parts; give some, as --part dev-clean: dev-clean, dev-other, test-clean,"),
        (("--part", "dev-cleen"), "librispeech has no part 'dev-cleen'; did you mean 'dev-clean'?"),
    ]:
        code, _, error = program(*command, *arguments)
        assert code == 2 and message in error and error.count("\n") == 1
    assert program("download", "libri", "--out", tmp_path)[2].startswith("error: no corpus 'libri' to download; ")


def test_every_archive_has_a_checksum_and_a_place():
    archives = [archive for parts in download.CORPORA.values() for archive in parts.values()]
    assert len({archive.md5 for archive in archives}) == len(archives) == 11
    assert all(len(bytes.fromhex(archive.md5)) == 16 for archive in archives)
    assert download.CORPORA["librispeech"]["train-clean-100"].place == "12/train-clean-100.tar.gz"
