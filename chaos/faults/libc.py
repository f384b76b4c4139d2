"""The C library's calls of py-lmdb's extension, led through Python: the table of its imports is rewritten with ctypes.

No compiler, no root, no ptrace.  An ELF object calls a function of another one through a slot of its global offset table
(GOT); `redirected` puts a callback of ours into the slots of `NAMES`, and what was there back at its end.  A child that is
forked meanwhile has the callbacks, too.

    def log(call):
        print(call)
        return call.make()          # or call.make(512), a short write; or call.fail(errno.EIO); or 0, a lie

    with redirected(log):
        store.commit(draft)

Notes on LMDB 0.9, as py-lmdb builds it: single pages go through pwrite, more at once through lseek and writev; the meta page
through a descriptor of its own that is opened with O_DSYNC (`Call.dsync`); with `writemap` pages are written through the map,
and made durable with msync.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import mmap
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple

FAILED: Final = -1
EXTENSIONS: Final = ("lmdb.cpython", "lmdb_cffi")
"""The modules that LMDB may be compiled into."""
_INT, _LONG, _SIZE = ctypes.c_int, ctypes.c_ssize_t, ctypes.c_size_t
_SIGNATURES: Final[dict[str, tuple[Any, ...]]] = {
    "pwrite": (_LONG, _INT, _SIZE, _SIZE, ctypes.c_int64),
    "pwritev": (_LONG, _INT, _SIZE, _INT, ctypes.c_int64),
    "write": (_LONG, _INT, _SIZE, _SIZE),
    "writev": (_LONG, _INT, _SIZE, _INT),
    "fdatasync": (_INT, _INT),
    "fsync": (_INT, _INT),
    "msync": (_INT, _SIZE, _SIZE, _INT),
    "ftruncate": (_INT, _INT, ctypes.c_int64),
    "mmap": (_LONG, _SIZE, _SIZE, _INT, _INT, _INT, ctypes.c_int64),
}
NAMES: Final = frozenset(_SIGNATURES)
WRITES: Final = frozenset({"pwrite", "pwritev", "write", "writev"})
SYNCS: Final = frozenset({"fdatasync", "fsync", "msync"})
_NEEDED: Final = (frozenset({"pwrite", "pwrite64"}), frozenset({"fdatasync", "fsync"}), frozenset({"mmap", "mmap64"}))
"""Of each of these LMDB cannot do without: an object that has none calls the C library in a way that is not seen here."""
_MACHINES: Final[dict[str, frozenset[int]]] = {"x86_64": frozenset({7, 6, 1}), "aarch64": frozenset({1026, 1025, 257})}
"""The types of relocation that fill a slot with an address: JUMP_SLOT, GLOB_DAT, 64."""
_PT_DYNAMIC, _ET_EXEC = 2, 2
_STRTAB, _SYMTAB, _RELA, _RELASZ, _JMPREL, _PLTRELSZ = 5, 6, 7, 8, 23, 2
_RELA_BYTES, _SYMBOL_BYTES, _HEADER_BYTES = 24, 24, 56

Handler = Callable[["Call"], int]


class Unavailable(Exception):
    """Calls cannot be redirected here; the message says why."""


class Call:
    """A call on a file that is watched, before it is made.  Valid only while its handler runs: it points into LMDB's memory.

    `fd` is -1 for msync; `path` is that of the file.  `offset` and `length` are bytes of the file: what is written, synced
    (0 and 0 for the whole file), mapped, or, `length` alone, the size that ftruncate gives it.  `flags`: of msync and mmap.
    `address`: where msync begins in memory.  `result`: what the call returned, None as long as it was not made.
    """

    __slots__ = ("_arguments", "_pieces", "address", "fd", "flags", "length", "name", "offset", "path", "result")

    def __init__(self, name: str, arguments: tuple[int, ...], fd: int, path: str) -> None:
        self.name = name
        self.fd = fd
        self.path = path
        self.result: int | None = None
        self.offset = self.length = self.flags = self.address = 0
        self._arguments = arguments
        self._pieces: list[tuple[int, int]] = []
        if name in WRITES:
            self._pieces = _vector(arguments[1], arguments[2]) if name.endswith("v") else [(arguments[1], arguments[2])]
            self.length = sum(length for _, length in self._pieces)
            self.offset = arguments[3] if name.startswith("p") else os.lseek(fd, 0, os.SEEK_CUR)
        elif name == "ftruncate":
            self.length = arguments[1]
        elif name == "msync":
            self.address, self.length, self.flags = arguments
        elif name == "mmap":
            self.length, self.flags, self.offset = arguments[1], arguments[3], arguments[5]

    def __str__(self) -> str:
        """As reports show it."""
        kind = " (O_DSYNC)" if self.name in WRITES and self.dsync else ""
        return f"{self.name}({Path(self.path).name}, {self.offset}+{self.length}){kind}"

    @property
    def dsync(self) -> bool:
        """Whether what is written through the descriptor is durable on return."""
        return self.fd >= 0 and bool(fcntl.fcntl(self.fd, fcntl.F_GETFL) & os.O_DSYNC)

    @property
    def writable(self) -> bool:
        """Whether mmap maps the file for writing to it."""
        return self.name == "mmap" and bool(self._arguments[2] & mmap.PROT_WRITE) and bool(self.flags & mmap.MAP_SHARED)

    def data(self) -> bytes:
        """A copy of what is to be written; b"" where nothing is."""
        return b"".join(ctypes.string_at(address, length) for address, length in self._pieces)

    def make(self, length: int | None = None) -> int:
        """Make the call, of a write only the first `length` bytes; its result, with errno set for LMDB to see."""
        arguments, kept = self._arguments, None
        if length is not None and self.name in WRITES:
            if self.name.endswith("v"):
                kept, count = _cut(self._pieces, length)
                arguments = (arguments[0], ctypes.addressof(kept), count, *arguments[3:])
            else:
                arguments = (*arguments[:2], length, *arguments[3:])
        self.result = int(_real(self.name)(*arguments))
        return self.result

    @staticmethod
    def fail(code: int) -> int:
        """Tell LMDB that the call has failed with errno `code`; returns what the handler must return."""
        ctypes.set_errno(code)
        return FAILED


def _vector(address: int, count: int) -> list[tuple[int, int]]:
    flat = list((ctypes.c_uint64 * (2 * count)).from_address(address))
    return list(zip(flat[::2], flat[1::2], strict=True))


def _cut(pieces: list[tuple[int, int]], length: int) -> tuple[ctypes.Array[ctypes.c_uint64], int]:
    flat: list[int] = []
    for address, many in pieces:
        taken = min(many, length)
        if taken:
            flat += (address, taken)
        length -= taken
    return (ctypes.c_uint64 * max(2, len(flat)))(*flat), len(flat) // 2


class Mapped(NamedTuple):
    """A line of /proc/self/maps."""

    start: int
    stop: int
    protection: int
    offset: int
    path: str


def maps() -> Iterator[Mapped]:
    """What is mapped into this process, by address."""
    with Path("/proc/self/maps").open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            span, letters, offset, _, _, *path = line.rstrip("\n").split(None, 5)
            start, _, stop = span.partition("-")
            bits = (mmap.PROT_READ if "r" in letters else 0) | (mmap.PROT_WRITE if "w" in letters else 0)
            yield Mapped(int(start, 16), int(stop, 16), bits | (mmap.PROT_EXEC if "x" in letters else 0), int(offset, 16),
                         path[0] if path else "")


def unavailable() -> str:
    """Why the calls of LMDB cannot be redirected in this process; "" where they can."""
    if not sys.platform.startswith("linux"):
        return f"calls are redirected in ELF objects under Linux only; this is {sys.platform}"
    if platform.machine() not in _MACHINES or sys.maxsize < 1 << 32:
        return f"calls are redirected on {' and '.join(_MACHINES)} only; this is {platform.machine()}"
    try:
        found = slots(extension())
        _trampolines()
    except Unavailable as error:
        return str(error)
    except (OSError, MemoryError) as error:
        return f"no callbacks can be made in this process: {error}"
    missing = [min(names) for names in _NEEDED if not names & set(found)]
    if missing:
        return f"{extension()} does not call {', '.join(missing)} through its table of imports: a C library is linked into it"
    return ""


def extension() -> str:
    """The file of the shared object that LMDB was compiled into; raises Unavailable where there is none."""
    for name in EXTENSIONS:
        if name in sys.modules:
            return str(sys.modules[name].__file__)
    message = f"none of the modules {', '.join(EXTENSIONS)} is loaded; import lmdb first"
    raise Unavailable(message)


@functools.cache
def slots(path: str) -> dict[str, list[int]]:
    """The addresses of the slots of a loaded object, by the name that each imports; raises Unavailable where it is not read."""
    base = next((m.start for m in maps() if m.path == path and m.offset == 0), None)
    if base is None:
        message = f"{path} is not mapped into this process from its beginning"
        raise Unavailable(message)
    head = ctypes.string_at(base, 64)
    if head[:6] != b"\x7fELF\x02\x01":
        message = f"{path} is not a 64-bit little-endian ELF object"
        raise Unavailable(message)
    kind, = struct.unpack_from("<H", head, 16)
    bias = 0 if kind == _ET_EXEC else base
    table = _dynamic(base, bias, head)
    try:
        names, symbols = (_there(table[tag], bias) for tag in (_STRTAB, _SYMTAB))
    except KeyError as error:
        message = f"{path} has no dynamic table: it is linked statically"
        raise Unavailable(message) from error
    types, found = _MACHINES[platform.machine()], dict[str, list[int]]()
    for start, size in ((_JMPREL, _PLTRELSZ), (_RELA, _RELASZ)):
        if start not in table:
            continue
        entries = ctypes.string_at(_there(table[start], bias), table.get(size, 0))
        for offset, info, _ in struct.iter_unpack("<QQq", entries[: len(entries) // _RELA_BYTES * _RELA_BYTES]):
            if info & 0xffffffff in types and info >> 32:
                name, = struct.unpack("<I", ctypes.string_at(symbols + _SYMBOL_BYTES * (info >> 32), 4))
                found.setdefault(ctypes.string_at(names + name).decode(), []).append(bias + offset)
    return found


def _dynamic(base: int, bias: int, head: bytes) -> dict[int, int]:
    first, = struct.unpack_from("<Q", head, 32)
    count, = struct.unpack_from("<H", head, 56)
    table = dict[int, int]()
    for number in range(count):
        header = ctypes.string_at(base + first + _HEADER_BYTES * number, _HEADER_BYTES)
        kind, _, _, address, *_ = struct.unpack("<IIQQQQQQ", header)
        if kind != _PT_DYNAMIC:
            continue
        at = bias + address
        while True:
            tag, value = struct.unpack("<qQ", ctypes.string_at(at, 16))
            if tag == 0:
                break
            table[tag], at = value, at + 16
    return table


def _there(address: int, bias: int) -> int:
    """An address of the dynamic table in this process: glibc has relocated it where it lies, musl has not."""
    return address if address >= bias else bias + address


_DEFERRED: list[tuple[_Guard, int, FrameType | None]] = []
_REALS: dict[str, Any] = {}
_CALLBACKS: dict[str, Any] = {}
_BODIES: set[CodeType] = set()


class _Installed:
    """Who is asked now, and what went wrong while it was."""

    handler: Handler | None = None
    watched: Callable[[str], bool] | None = None
    raised: BaseException | None = None


def _real(name: str) -> Any:
    return _REALS[name]


def _trampolines() -> dict[str, Any]:
    """The callbacks, made once for the life of the process: a thread may still be in one when its slot is given back."""
    if not _CALLBACKS:
        library = ctypes.CDLL(None, use_errno=True)
        for name, (result, *arguments) in _SIGNATURES.items():
            prototype = ctypes.CFUNCTYPE(result, *arguments, use_errno=True)
            _REALS[name] = prototype((name, library))
            body = _body(name)
            _BODIES.add(body.__code__)
            _CALLBACKS[name] = prototype(body)
    return _CALLBACKS


def _body(name: str) -> Callable[..., int]:
    """What stands in a slot.  Nothing may be raised out of it: C would take whatever lies in the register for the result."""
    real = _REALS[name]

    def body(*arguments: int) -> int:
        call = None
        try:
            call = _watched(name, arguments)
            handler = _Installed.handler
            if call is not None and handler is not None:
                return int(handler(call))
        except BaseException as error:  # noqa: BLE001 - raised when the slots are given back
            _Installed.raised = _Installed.raised or error
            if call is not None and call.result is not None:
                return call.result
        return int(real(*arguments))

    return body


def _watched(name: str, arguments: tuple[int, ...]) -> Call | None:
    fd = FAILED if name == "msync" else arguments[4] if name == "mmap" else arguments[0]
    if name == "msync":
        of = next((m for m in maps() if m.start <= arguments[0] < m.stop), None)
        path = "" if of is None else of.path
    elif fd < 0:
        return None
    else:
        of, path = None, os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 - at each call
    if _Installed.watched is None or not _Installed.watched(path.removesuffix(" (deleted)")):
        return None
    call = Call(name, arguments, fd, path.removesuffix(" (deleted)"))
    if of is not None:
        call.offset = of.offset + call.address - of.start
    return call


def data_file(path: str) -> bool:
    """Whether it is the data file of a store, of a backup, or of one that is made anew."""
    return path.endswith("/data.mdb")


@contextlib.contextmanager
def redirected(handler: Handler, *, watched: Callable[[str], bool] = data_file) -> Iterator[None]:
    """Within, each call of `NAMES` that LMDB makes on a file whose path is `watched` is the handler's to make, or not.

    The handler returns the call's result: `call.make()`, `call.fail(errno)`, or a lie.  It runs in the thread that called,
    with the GIL.  Where it raises, the call is made, unless it was already, and the first exception comes out at the end of
    the block.  A Python signal handler that would run within the callback runs at the end of the block, instead; for that,
    begin the block in the main thread.  Raises Unavailable with the reason, also where another one is active.  In a child
    that is forked within the block the calls stay redirected until it ends.
    """
    if _Installed.handler is not None:
        message = "the calls are redirected already, and only one handler can be asked"
        raise Unavailable(message)
    if why := unavailable():
        raise Unavailable(why)
    found, callbacks = slots(extension()), _trampolines()
    targets = {address: ctypes.cast(callbacks[name], ctypes.c_void_p).value or 0
               for name in callbacks for alias in (name, f"{name}64") for address in found.get(alias, ())}
    _Installed.handler, _Installed.watched, _Installed.raised = handler, watched, None
    before, guards = dict[int, int](), _defer_signals()
    try:
        before = _exchange(targets)
        yield
    finally:
        _exchange(before)
        raised, _Installed.handler, _Installed.watched, _Installed.raised = _Installed.raised, None, None, None
        for guard, number, frame in _end_deferring(guards):
            guard.handler(number, frame)
        if raised is not None:
            raise raised


def _exchange(values: dict[int, int]) -> dict[int, int]:
    """Write each slot; what was there.  Pages that the loader has made read-only (RELRO) are made so again."""
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (_SIZE, _SIZE, _INT)
    pages = {address // mmap.PAGESIZE * mmap.PAGESIZE for address in values}
    found = {page: m.protection for m in maps() for page in pages if m.start <= page < m.stop}
    locked = {page: bits for page, bits in found.items() if not bits & mmap.PROT_WRITE}
    before = dict[int, int]()
    try:
        for page, bits in locked.items():
            if protect(page, mmap.PAGESIZE, bits | mmap.PROT_WRITE):
                message = f"the table of imports cannot be made writable: {os.strerror(ctypes.get_errno())}"
                raise Unavailable(message)
        for address, value in values.items():
            cell = ctypes.c_uint64.from_address(address)
            before[address], cell.value = cell.value, value
    finally:
        for page, bits in locked.items():
            protect(page, mmap.PAGESIZE, bits)
    return before


class _Guard:
    """Stands for a signal handler of Python's, which may raise, and at any instruction: it runs only outside the callbacks."""

    def __init__(self, handler: Callable[[int, FrameType | None], Any]) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> Any:
        at = frame
        while at is not None:
            if at.f_code in _BODIES:
                _DEFERRED.append((self, number, frame))
                return None
            at = at.f_back
        return self.handler(number, frame)


def _defer_signals() -> dict[int, _Guard]:
    guards = dict[int, _Guard]()
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler):
            with contextlib.suppress(ValueError):  # not the main thread, where alone handlers are set, and run
                signal.signal(number, guard := _Guard(handler))
                guards[number] = guard
    return guards


def _end_deferring(guards: dict[int, _Guard]) -> list[tuple[_Guard, int, FrameType | None]]:
    for number, guard in guards.items():
        if signal.getsignal(number) is guard:  # else the block has set another one
            signal.signal(number, guard.handler)
    late = _DEFERRED.copy()
    _DEFERRED.clear()
    return late
