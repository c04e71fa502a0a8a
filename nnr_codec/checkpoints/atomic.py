"""Output files that appear under their name complete or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from nnr_codec.errors import InvalidOptions

_OPTION = "output"
_MODE = 0o666  # less the umask, which the operating system takes off
_DESCRIPTOR = re.compile(r"/dev/(?:std(?P<std>out|err)|fd/(?P<fd>\d+))|/proc/self/fd/(?P<proc>\d+)")
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
# What open(2) says where file system or kernel know no O_TMPFILE.
_NO_UNNAMED_FILES = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}


@contextmanager
def atomic_output(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Give a binary file to write, which becomes `path` when the block ends without an exception.

    Until then nothing of it can be seen, and after an exception nothing is left. On Linux nothing
    is left after SIGKILL either, because the file has no name until it is complete and on the disk;
    elsewhere, and on file systems without such files, a killed process leaves `.nnr-*.tmp` behind.
    A symbolic link is followed, and its target replaced. Permissions are what the umask says.
    Pipes and character devices, and descriptors such as `/dev/stdout`, are written directly.

    Args:
        path: the file to write; its folder exists.
        overwrite: replace an existing file.

    Raises:
        InvalidOptions: the file exists and `overwrite` is not given, or it cannot be created there.
            Raised before the block is entered, unless another process made the file meanwhile.
        OSError: writing failed, for instance because the disk is full; it names the file.
    """
    text = os.fspath(path)
    if not os.path.basename(text):
        raise InvalidOptions(_OPTION, f"{text!r} is not the name of a file")
    try:
        direct = _open_direct(text)
        if direct is None:
            yield from _in_place_of(text, overwrite)
        else:
            with direct:
                yield direct
    except OSError as error:
        if error.filename is None:  # writing fails with a number alone
            error.filename = text
        raise


def makes_new_file(path: str | os.PathLike[str]) -> bool:
    """Whether `atomic_output` makes a new file for `path`, which can be read again while it is
    written; else a pipe, a device or a descriptor is written directly."""
    text = os.fspath(path)
    return not _DESCRIPTOR.fullmatch(text) and (os.path.isfile(text) or not os.path.exists(text))


def _in_place_of(text: str, overwrite: bool) -> Iterator[BinaryIO]:
    """Yield a temporary file, and let it become `text`."""
    target = os.path.realpath(text)
    if not overwrite and os.path.lexists(target):
        raise _exists(text)
    folder = os.path.dirname(target)
    # Known before there is such a file: it goes, whenever an interruption comes.
    temporary = os.path.join(folder, f".nnr-{secrets.token_hex(8)}.tmp")
    try:
        descriptor, is_named = _open_temporary(text, temporary)
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
            is_linked = not is_named and _link_unnamed(file, temporary, target)
        if not is_linked and not _move(temporary, target, overwrite):
            raise _exists(text)
    finally:
        if os.path.lexists(temporary):  # else there was none yet, or it is in place
            os.unlink(temporary)
    _sync_folder(folder)


def _exists(path: str) -> InvalidOptions:
    return InvalidOptions(_OPTION, f"{path!r} exists already, and is not to be overwritten")


def _open_direct(path: str) -> BinaryIO | None:
    """Open `path` for writing in place if it is a descriptor, a pipe or a character device.

    Raises:
        InvalidOptions: it cannot be opened, or is nothing that a file can be written to.
    """
    try:
        named = _DESCRIPTOR.fullmatch(path)
        if named is not None and os.path.exists(path):
            # Not opened anew, which would truncate a file that the shell has redirected to.
            number = {"out": 1, "err": 2}.get(named["std"]) or int(named["fd"] or named["proc"])
            return os.fdopen(os.dup(number), "wb")
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return None
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            return open(path, "wb")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _cannot_write(path, error) from error
    kind = "a directory" if stat.S_ISDIR(mode) else "neither a file nor a pipe"
    raise InvalidOptions(_OPTION, f"{path!r} is {kind}")


def _cannot_write(path: str, error: Exception) -> Exception:
    """Return what to raise: an error of the option, unless the system is at its limits."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return OSError(error.errno, error.strerror, path)
    reason = error.strerror if isinstance(error, OSError) else None
    return InvalidOptions(_OPTION, f"cannot write {path!r}: {reason or error}")


def _open_temporary(path: str, temporary: str) -> tuple[int, bool]:
    """Open a file for the output `path`: its descriptor, and whether it has the name `temporary`
    already."""
    try:
        descriptor = _open_unnamed(os.path.dirname(temporary))
        return (_open_named(temporary), True) if descriptor is None else (descriptor, False)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _open_unnamed(folder: str) -> int | None:
    """Open a file without a name on the file system of `folder`; None where there is no such."""
    # Naming the file later goes through /proc, which a chroot may lack.
    if not hasattr(os, "O_TMPFILE") or not os.path.isdir("/proc/self/fd"):
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR, _MODE)
    except OSError as error:
        if error.errno in _NO_UNNAMED_FILES:
            return None
        raise


def _open_named(temporary: str) -> int:
    return os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | _BINARY, _MODE)


def _link_unnamed(file: BinaryIO, temporary: str, target: str) -> bool:
    """Give the finished unnamed `file` the name `target`, or else `temporary`; say whether the
    first."""
    try:
        _link_descriptor(file.fileno(), target)
        return True
    except FileExistsError:  # linking cannot replace a file, but moving can
        _link_descriptor(file.fileno(), temporary)
    except OSError:
        _copy_named(file, temporary)
    return False


def _link_descriptor(descriptor: int, target: str) -> None:
    """Do linkat(2) of the open file to `target`.

    A folder's descriptor has to be given: without one Python calls link(2), which would link the
    symbolic link in /proc instead of following it.
    """
    folder = os.open(os.path.dirname(target), os.O_PATH)
    try:
        source = f"/proc/self/fd/{descriptor}"
        os.link(source, os.path.basename(target), dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def _copy_named(file: BinaryIO, temporary: str) -> None:
    """Copy the finished unnamed `file`, which the system refuses to name, to one with a name."""
    with os.fdopen(_open_named(temporary), "wb") as copy:
        file.seek(0)
        shutil.copyfileobj(file, copy)
        copy.flush()
        os.fsync(copy.fileno())


def _move(temporary: str, target: str, overwrite: bool) -> bool:
    """Rename `temporary` to `target`; False if that exists and is not to be replaced."""
    if not overwrite:
        try:
            os.link(temporary, target)  # unlike a rename, never replaces a file made meanwhile
            return True
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if os.path.lexists(target):
                return False
    os.replace(temporary, target)
    return True


def _sync_folder(folder: str) -> None:
    """Get the new name on the disk too, where the system can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
