"""Files in memory, read-only, that hold no descriptor: a dataset has more shards than a process may open files."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from pathlib import Path

import numpy as np

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
FAILED = ctypes.c_void_p(-1).value


def map_file(path: Path) -> memoryview:
    """The whole file, read-only, unmapped once nothing refers to it any more; empty where the file is.

    Python's own ``mmap`` keeps a duplicate of the descriptor (3.13 can be told not to). ``OSError`` where the file
    cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(handle).st_size
        if size == 0:
            return memoryview(b"")
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, handle, 0)
        if address == FAILED:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(handle)
    pages = (ctypes.c_ubyte * size).from_address(address)
    # Not at exit, when threads may still read: the process's end unmaps all.
    weakref.finalize(pages, libc.munmap, address, size).atexit = False
    return memoryview(pages).cast("B").toreadonly()


def require_whole(path: Path, end: int, inode: int | None = None) -> None:
    """``OSError`` where the file at ``path`` ends before ``end``, so that mapped memory must not be read there.

    A file that was deleted, or replaced by one of another ``inode`` than it had, is still mapped whole.
    """
    size = size_now(path, end, inode)
    if size < end:
        raise OSError(errno.EIO, f"the file was cut to {size} bytes after it had been opened", str(path))


def size_now(path: Path, mapped: int, inode: int | None = None) -> int:
    """Bytes of the file at ``path``; ``mapped`` where it was deleted or replaced, since its memory is still whole."""
    try:
        status = os.stat(path)
    except OSError:
        return mapped
    return mapped if inode is not None and status.st_ino != inode else status.st_size


def address_of(view: memoryview) -> int:
    """Where the first byte of ``view`` lies in memory."""
    return np.frombuffer(view, np.uint8).ctypes.data
