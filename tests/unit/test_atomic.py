"""Outputs appear complete or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nnr_codec.checkpoints import atomic
from nnr_codec.checkpoints.atomic import atomic_output
from nnr_codec.errors import InvalidOptions

linux_only = pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="needs O_TMPFILE")


@pytest.fixture(params=["unnamed", "named", "unlinkable", "no hard links"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way of making the file: without a name, and as other systems make us do it."""
    link = os.link

    def refuse(source, target, **options):
        if request.param == "no hard links" or source.startswith("/proc/"):
            raise OSError(errno.EPERM, "refused")
        link(source, target, **options)

    if request.param in ("named", "no hard links"):
        monkeypatch.setattr(atomic, "_open_unnamed", lambda folder: None)
    if request.param in ("unlinkable", "no hard links"):
        monkeypatch.setattr(os, "link", refuse)
    return request.param


def write(path: Path, data: bytes, **options) -> None:
    with atomic_output(path, **options) as file:
        file.write(data)


def write_and_raise(path: Path, error: type[BaseException], **options) -> None:
    with atomic_output(path, **options) as file:
        file.write(b"some")
        raise error


def test_complete_file_appears_at_the_end(tmp_path: Path, way: str) -> None:
    path = tmp_path / "out"
    with atomic_output(path) as file:
        file.write(b"some")
        file.flush()
        assert not path.exists()
        file.write(b" bytes")
    assert path.read_bytes() == b"some bytes"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, FileExistsError])
def test_nothing_stays_after_an_exception(tmp_path: Path, way: str, error: type) -> None:
    with pytest.raises(error):
        write_and_raise(tmp_path / "out", error)
    assert os.listdir(tmp_path) == []


def test_old_file_survives_an_exception(tmp_path: Path, way: str) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        write_and_raise(path, ZeroDivisionError, overwrite=True)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out"]


def test_existing_file_is_refused_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with pytest.raises(InvalidOptions, match="exists already") as caught, atomic_output(path):
        pytest.fail("the block was entered")
    assert caught.value.option == "output"
    assert path.read_bytes() == b"old"


def test_overwriting_replaces(tmp_path: Path, way: str) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old and longer")
    with open(path, "rb") as still_open:
        write(path, b"new", overwrite=True)
        assert still_open.read() == b"old and longer"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out"]


def test_overwriting_needs_no_old_file(tmp_path: Path, way: str) -> None:
    write(tmp_path / "out", b"new", overwrite=True)
    assert (tmp_path / "out").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out"]


def test_file_made_meanwhile_is_not_replaced(tmp_path: Path, way: str) -> None:
    path = tmp_path / "out"
    output = atomic_output(path)
    output.__enter__().write(b"ours")
    path.write_bytes(b"theirs")
    with pytest.raises(InvalidOptions, match="exists already"):
        output.__exit__(None, None, None)
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.skipif(os.name != "posix", reason="needs a umask")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_the_umask(tmp_path: Path, way: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "out", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("exists", [True, False])
def test_symbolic_link_is_followed(tmp_path: Path, way: str, exists: bool) -> None:
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to("folder/target")
    if exists:
        target.write_bytes(b"old")
        with pytest.raises(InvalidOptions, match="exists already"):
            write(link, b"new")
    write(link, b"new", overwrite=True)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_relative_paths_and_long_names(tmp_path: Path, way: str, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path("out"), Path("n" * 255)):
        write(path, b"data")
        assert path.read_bytes() == b"data"


def test_what_cannot_be_an_output(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    names = [".", "missing/out", "file/out", "loop", "n" * 256, "nul\0", "new/"]
    for path in ["", *(f"{tmp_path}/{name}" for name in names)]:
        with pytest.raises(InvalidOptions) as caught:
            write(path, b"", overwrite=True)
        assert caught.value.option == "output"
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do all")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InvalidOptions, match="cannot write"):
        write(tmp_path / "out", b"")


@linux_only
def test_character_devices_are_written_directly() -> None:
    write("/dev/null", b"data")
    with pytest.raises(OSError, match="No space left"):
        write("/dev/full", b"data")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@linux_only
def test_pipe_is_written_directly(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(path.read_bytes()))
    reader.start()
    write(path, b"data")
    reader.join()
    assert received == [b"data"]
    assert stat.S_ISFIFO(path.stat().st_mode)


def start(code: str, *arguments: object, **options) -> subprocess.Popen:
    """Run `code` in another process, away from a checkout, which it would import before us."""
    options["cwd"] = Path(sys.executable).parent
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], **options)


WRITE_TO = """
import sys
from nnr_codec.checkpoints.atomic import atomic_output
with atomic_output(sys.argv[1]) as file:
    file.write(b"data")
"""


@linux_only
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output(tmp_path: Path, name: str) -> None:
    piped = start(WRITE_TO, name, stdout=subprocess.PIPE)
    assert piped.communicate()[0] == b"data"
    redirected = tmp_path / "redirected"
    with open(redirected, "ab") as output:
        output.write(b"before ")
        output.flush()
        assert start(WRITE_TO, name, stdout=output).wait() == 0
    assert redirected.read_bytes() == b"before data"


WRITE_FOREVER = """
import sys
from nnr_codec.checkpoints import atomic
if sys.argv[2] == "named":
    atomic._open_unnamed = lambda folder: None
with atomic.atomic_output(sys.argv[1], overwrite=True) as file:
    while True:
        file.write(bytes(100_000))
        file.flush()
        print(flush=True)
"""


def killed(path: Path, number: int, way: str) -> int:
    """Kill a process by signal `number` while it writes to `path`; return its exit status."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with start(WRITE_FOREVER, path, way, **pipes) as process:
        for _ in range(3):
            process.stdout.readline()  # it is in the middle of the file
        process.send_signal(number)
        process.stdout.close()
        return process.wait(timeout=30)


@linux_only
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("old", [None, b"old"], ids=["new file", "old file"])
def test_nothing_stays_of_a_killed_process(tmp_path: Path, number: int, old: bytes | None) -> None:
    path = tmp_path / "out"
    if old is not None:
        path.write_bytes(old)
    assert killed(path, number, "unnamed") == -number
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if old is None else [old])


@linux_only
def test_nothing_stays_of_an_interrupted_process_with_a_named_file(tmp_path: Path) -> None:
    assert killed(tmp_path / "out", signal.SIGINT, "named") == -signal.SIGINT
    assert os.listdir(tmp_path) == []
