"""The careful look: what is wrong about one user, or one store-wide record, each finding with its remedy.

It follows every reference and judges whatever it is shown; damage is told, never raised.  Whole stores go through the
quick pass of `statemachine.store.sieve` first, which leaves to this look what it cannot let pass.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from statemachine import codec
from statemachine.breaker import Breaker, Budget
from statemachine.clock import iso
from statemachine.errors import ResetError, StoreCorrupt, StoreForeign
from statemachine.rollout import Rollout
from statemachine.store import identities, keys
from statemachine.store.intents import Intent
from statemachine.store.records import ACCEPTED, DISPOSITIONS, Aside, Cursor, Head, Identity, Image, Meta, Pin, Swept, Unreadable

if TYPE_CHECKING:
    from statemachine.estimator import Estimator
    from statemachine.store.engine import Engine

Get = Callable[[bytes], bytes | None]

_SEQ_BYTES: Final = 8
_ROW_HEADER_BYTES: Final = 68
_PUBLIC_AT: Final = 64
_BACKUP: Final = "take it from a backup"
_SET_ANEW: Final = "set it anew with `resetguard rollout set --mode on|shadow|off`; its lists are lost"
_COPY: Final = ("its file alone is refused; process a copy of that with an empty line at its end, with the same options: "
                "what was taken in is known and counts once")
_RECOVER: Final = "`resetguard recover --user {}` walks back to the newest good version, as does the user's next measurement"
_LOST: Final = ("the head is good and goes on: nothing is to be done; the version itself cannot be read any more, nor can "
                "`resetguard rebuild {} --from FILE` take it out: it goes with retention")
REPORT: Final = "compare with a backup; restore the user to a version that reads, and report it as a bug if no disk was at fault"
BAD: Final = (StoreCorrupt, StoreForeign, ValueError)
"""What reading a record may raise; msgspec answers text that is no UTF-8 with a ValueError, and so does what does not decode."""


class Finding(NamedTuple):
    """One thing that is not as it should be: which check found it, about whom, and what to do."""

    check: str
    level: Literal["error", "warning"]
    subject: str
    problem: str
    remedy: str


class _Names(msgspec.Struct, frozen=True, gc=False):
    """What the indexes of the audit log lead by; all else of a row is skipped unread."""

    attempt_id: str = ""
    user: str = ""


_names: Final = msgspec.json.Decoder(_Names).decode
_identity: Final = msgspec.msgpack.Decoder(Identity).decode
_image: Final = msgspec.msgpack.Decoder(Image).decode


_OLD_BREAKER: Final = keys.damaged(b"", 0)[:-8]
_PLAIN: Final[dict[bytes, type]] = {
    keys.GLOBAL_BREAKER: Breaker, keys.BUDGET: Budget, keys.ROLLOUT: Rollout, keys.INTENT: Intent, keys.SWEPT: Swept,
}
"""Store-wide records that only need to decode."""


class StoreWide:
    """What lies under the leading NUL.  `looked` counts it by check; `kept` counts the rows that could not be read."""

    def __init__(self, meta: Meta | None = None, meta_now: Callable[[], Meta | None] = lambda: None) -> None:
        self._meta = meta
        self._meta_now = meta_now  # its counters may have been raised since
        self._sources: set[int] = set()
        self.looked: Counter[str] = Counter()
        self.kept = 0

    def judged(self, get: Get, key: bytes, value: bytes) -> list[Finding]:
        """All that is wrong about one record; each is shown once."""
        try:
            return list(self._judged(get, key, value))
        except BAD as error:
            return [_unreadable("the store", _named(key), error, _remedy(key))]

    def _judged(self, get: Get, key: bytes, value: bytes) -> Iterator[Finding]:
        kind = key[:2]
        if kind == keys.ATTEMPT:
            yield from _attempt(get, key, value)
        elif key.startswith(_OLD_BREAKER):
            pass  # nothing is to be done about it: what it counted was given up when it was replaced
        elif kind == keys.DAMAGED:
            self.looked["damaged heads"] += 1
            version = int.from_bytes(key[-8:], "big")
            yield Finding("damaged heads", "warning", f"user {_text(key[2:-9])!r}",
                          f"the bytes of a head that could not be read are kept, from before version {version}",
                          "look at the user's versions after it; then they may be left where they are")
        else:
            content = codec.unseal(key, value)
            if kind == keys.AUDIT:
                yield from _audit_row(get, key, content)
            elif kind == keys.PIN:
                codec.unpack(Pin, content)
                if get(keys.head(key[2:])) is None:
                    yield Finding("probation", "error", f"user {_text(key[2:])!r}",
                                  "a before-image is pinned for a user who has no head", REPORT)
            elif kind == keys.CURSOR:
                yield from self._cursor(codec.unpack(Cursor, content))
            elif kind == keys.OWNER:
                yield from self._owner(key, content)
            elif kind == keys.UNREADABLE:
                codec.unpack(Unreadable, content)
                self.kept += 1
            elif kind in _PLAIN:
                codec.unpack(_PLAIN[kind], content)

    def _cursor(self, cursor: Cursor) -> Iterator[Finding]:
        self.looked["cursors"] += 1
        subject = f"source {cursor.source_id} ({cursor.name or 'without a name'})"
        if cursor.source_id in self._sources:
            yield Finding("cursors", "error", subject, "two sources have this number", REPORT)
        self._sources.add(cursor.source_id)
        meta = self._meta
        if meta is not None and not 0 < cursor.source_id <= meta.sources and self._still(meta):
            yield Finding("cursors", "error", subject, f"the store has given out {meta.sources} numbers of sources", REPORT)
        if cursor.consumed < 0:
            yield Finding("cursors", "error", subject, f"{cursor.consumed} rows were consumed of it", REPORT)

    def _still(self, meta: Meta) -> bool:
        now = self._meta_now()
        return now is not None and (now.sources, now.owners) == (meta.sources, meta.owners)

    def _owner(self, key: bytes, content: bytes) -> Iterator[Finding]:
        self.looked["owners"] += 1
        number, meta = int.from_bytes(key[2:], "big"), self._meta
        if len(content) != _SEQ_BYTES:
            yield Finding("owners", "error", f"owner {number}", "its number of commits is torn", REPORT)
        elif meta is not None and number > meta.owners and self._still(meta):
            yield Finding("owners", "error", f"owner {number}", f"the store has had {meta.owners} owners", REPORT)


def _audit_row(get: Get, key: bytes, content: bytes) -> Iterator[Finding]:
    """A row is found under its attempt and under its user."""
    attempt_id, user = _names_in(content)
    seq, place = key[2:], f"audit row {int.from_bytes(key[2:], 'big')}"
    if attempt_id and get(keys.attempt(attempt_id)) != seq:
        yield Finding("audit index", "error", place, f"it is not found under its attempt {attempt_id}",
                      "`resetguard audit list` still shows it")
    if user and get(user.encode() + b"\0a" + seq) is None:
        yield Finding("audit index", "error", place, f"it is not found under its user {user!r}",
                      "`resetguard audit list` without --user still shows it")


def _attempt(get: Get, key: bytes, value: bytes) -> Iterator[Finding]:
    """An attempt's key leads to the row that names it; its bytes carry no checksum of their own."""
    attempt_id, _ = _row_at(get, value)
    if not attempt_id or keys.attempt(attempt_id) != key:
        yield Finding("audit index", "error", f"attempt {key[2:].hex()}", "its key leads to no row that names it",
                      "look for its outcome in `resetguard audit list`")


def record_now(engine: Engine, key: bytes) -> list[Finding]:
    """What is wrong about the pin, the audit row or the attempt under a key, as the store is at one moment."""
    with engine.reading() as txn:
        value = txn.get(key)
        return [] if value is None else StoreWide().judged(txn.get, key, value)


def user_now(engine: Engine, estimator: Estimator, prefix: bytes, kept_max: int) -> tuple[list[Finding], UserRecords]:
    """What is wrong about a user as the store is at one moment, and what was counted of the user.

    More than `kept_max` measurements kept aside are worth a warning.
    `prefix` is what all keys of the user begin with; a key without the NUL that ends a name belongs to nobody.
    """
    user = UserRecords(prefix, estimator, kept_max)
    if not prefix.endswith(b"\0"):
        return [Finding("records", "error", "the store", f"the record at {prefix!r} belongs to no user", REPORT)], user
    with engine.reading() as txn, txn.cursor() as cursor:
        there = cursor.set_range(prefix)
        while there and cursor.key().startswith(prefix):
            user.add(txn.get, cursor.key(), cursor.value())
            there = cursor.next()
        return user.judged(txn.get), user


class UserRecords:
    """One user's records as they stream past in the order of their keys, and what they say together at the end."""

    __slots__ = ("_aside", "_damaged", "_estimator", "_found", "_head", "_head_there", "_identities", "_image_read", "_kept_max",
                 "_newest", "_number", "_oldest_is_image", "kept", "oldest_kept_us", "prefix", "pruned", "records", "versions")

    def __init__(self, prefix: bytes, estimator: Estimator, kept_max: int) -> None:
        self.prefix = prefix
        self._kept_max = kept_max
        self.pruned = 0
        self._estimator = estimator
        self._found: list[Finding] = []
        self._aside: Aside | None = None
        self._head: Head | None = None
        self._head_there = False
        self._damaged = False
        self._identities = 0
        self._newest = 0
        self._number = 0
        self._oldest_is_image = True
        self._image_read = False
        self.kept = 0
        self.oldest_kept_us: int | None = None
        self.records = 0
        self.versions = 0

    def add(self, get: Get, key: bytes, value: bytes) -> None:
        """Take in the next record of the user."""
        letter = key[len(self.prefix):len(self.prefix) + 1]
        self.records += 1
        try:
            if letter == b"a":
                self._index(get, key, value)
            elif letter == b"v":
                self._version(key, value)
            elif letter == b"i":
                self._identity(key, value)
            elif letter == b"s":
                self._head_there = True
                head = codec.unpack(Head, codec.unseal(key, value))
                self._estimator.decode(head.state)
                self._head = head
            else:
                self._other(letter, codec.unseal(key, value))
        except BAD as error:
            self._damaged = self._damaged or letter in (b"i", b"r")
            remedy = self._for_version() if letter == b"v" else self._remedy(letter)
            found = _unreadable(self._subject(), self._name(letter, key), error, remedy)
            spare = letter == b"v" and self._is_head_good() and self._image_read  # neither it nor a walk back needs the version
            self._found.append(found._replace(level="warning") if spare else found)

    def _index(self, get: Get, key: bytes, value: bytes) -> None:
        seq = key[len(self.prefix) + 1:]
        attempt_id, user = _row_at(get, seq)
        erased = attempt_id is not None and not user
        if value or not (erased or (user is not None and user.encode() == self.prefix[:-1])):
            self._tell("audit index", f"its key for audit row {int.from_bytes(seq, 'big')} leads to no row about the user",
                       "look for the user's rows in `resetguard audit list` without --user")

    def _version(self, key: bytes, value: bytes) -> None:
        number = keys.number_of(key)
        if not self._newest:
            self._newest = number
        elif number != self._number - 1:
            gone = f"version {number + 1}" if number == self._number - 2 else f"versions {number + 1} to {self._number - 1}"
            self._tell("versions", f"{gone} missing from the log", REPORT)
        self._number = number
        self.versions += 1
        self._oldest_is_image = True  # where it cannot be read, that is told and no more is known
        content = codec.unseal(key, value)
        if content[:1] == bytes((codec.IMAGE,)):
            self._estimator.decode(_image(content[1:]).state)
            self._image_read = True
        else:
            codec.decode_step(content)
            self._oldest_is_image = False

    def _identity(self, key: bytes, value: bytes) -> None:
        self._identities += 1
        kept = _identity(codec.unseal(key, value))
        if kept.disposition != ACCEPTED:
            if not ACCEPTED < kept.disposition < len(DISPOSITIONS):
                message = f"it says {kept.disposition} of where the measurement went"
                raise StoreCorrupt(message)
            self.kept += 1
            if identities.is_pruned(kept):
                self.pruned += 1
                return
            at_us = keys.instant_of(key, self.prefix[:-1])
            if self.oldest_kept_us is None:
                self.oldest_kept_us = at_us  # identities lie in the order of their instants

    def _other(self, letter: bytes, content: bytes) -> None:
        if letter == b"b":
            codec.unpack(Breaker, content)
        elif letter == b"r":
            self._aside = codec.unpack(Aside, content)

    def judged(self, get: Get) -> list[Finding]:
        """All that is wrong about the user; call once, after the last record."""
        head, name = self._head, self.prefix[:-1]
        aside = self._aside.count if self._aside is not None else 0
        if not self._damaged and aside != self.kept:
            self._tell("kept aside", f"the count of what is kept aside says {aside}, and {self.kept} are there", REPORT)
        pruned = self._aside.pruned if self._aside is not None else 0
        if not self._damaged and pruned != self.pruned:
            self._tell("kept aside", f"the count of what was pruned says {pruned}, and {self.pruned} are there", REPORT)
        if self.kept - self.pruned > self._kept_max:
            self._found.append(Finding("kept aside", "warning", self._subject(), (
                f"{self.kept - self.pruned} measurements are kept aside, more than {self._kept_max}"),
                "look at them with `resetguard quarantine list`; `resetguard quarantine prune` drops their content"))
        if not self._oldest_is_image:
            self._tell("versions", f"version {self._number}, the oldest, is a step with no image before it", REPORT)
        if head is not None:
            self._judge_head(head)
            if (get(keys.pin(name)) is None) != (head.probation is None):
                problem = ("the user is on probation and has no before-image pinned" if head.probation is not None
                           else "a before-image is pinned, and the user is not on probation")
                self._tell("probation", problem, REPORT)
        elif not self._head_there and self.versions:
            self._tell("heads", f"there is no head, and the log has {self.versions} versions", self._with_user(_RECOVER))
        elif not self._head_there and self._identities and not (aside or self.kept):
            self._tell("orphans", f"{self._identities} measurements are recorded, with no head and nothing kept aside", REPORT)
        return self._found

    def _judge_head(self, head: Head) -> None:
        if head.version != self._newest:
            newest = f"the newest in the log is {self._newest}" if self._newest else "the log is empty"
            self._tell("heads", f"the head says version {head.version}, and {newest}", self._with_user(_RECOVER))
        if self._newest and head.first != self._number:
            self._tell("versions", f"the head says the log begins at version {head.first}, and it begins at {self._number}",
                       REPORT)

    def _tell(self, check: str, problem: str, remedy: str) -> None:
        self._found.append(Finding(check, "error", self._subject(), problem, remedy))

    def _is_head_good(self) -> bool:
        """For a version: the head lies before the versions, the newest of them first, so that both are known by then."""
        return self._head is not None and self._head.version == self._newest

    def _for_version(self) -> str:
        return for_version(_text(self.prefix[:-1]), head_good=self._is_head_good())

    def _with_user(self, remedy: str) -> str:
        return remedy.format(shlex.quote(_text(self.prefix[:-1])))

    def _subject(self) -> str:
        return f"user {_text(self.prefix[:-1])!r}"

    def _remedy(self, letter: bytes) -> str:
        user = self.prefix[:-1]
        return {b"s": self._with_user(_RECOVER), b"b": _close_anew(_text(user)), b"r": _rebuild(user)}.get(letter, _BACKUP)

    def _name(self, letter: bytes, key: bytes) -> str:
        if letter == b"v":
            return f"version {keys.number_of(key)}"
        if letter == b"i":
            try:
                return f"the measurement at {iso(keys.instant_of(key, self.prefix[:-1]))}"
            except (OverflowError, ValueError):
                return "a measurement"
        named = {b"s": "the head", b"b": "the breaker", b"r": "the count of what is kept aside"}
        return named.get(letter, f"the record {letter!r}")


def for_version(user: str, *, head_good: bool) -> str:
    """What helps against a version that cannot be read; a head is good that reads and is the newest version's."""
    return (_LOST if head_good else _RECOVER).format(shlex.quote(user))


def _text(user: bytes) -> str:
    return user.decode("utf-8", "backslashreplace")


def _close_anew(whose: str) -> str:
    where = "are kept aside" if whose == "--global" else "go to the audit log"
    return f"close it anew with `resetguard breaker release {whose}`: its bytes {where}, and what it counted is lost"


def _rebuild(user: bytes) -> str:
    return f"`resetguard rebuild {_text(user)} --from FILE`, with the files that the state was made of, writes it anew"


def _remedy(key: bytes) -> str:
    """What helps against a store-wide record that cannot be read."""
    if key[:2] == keys.PIN:
        return _rebuild(key[2:])
    return {
        keys.ROLLOUT: _SET_ANEW, keys.CURSOR: _COPY, keys.GLOBAL_BREAKER: _close_anew("--global"),
        keys.BUDGET: "`resetguard breaker release --global` drops it: what was taken from the budget is forgotten",
    }.get(key[:2], _BACKUP)


def _named(key: bytes) -> str:
    """What a store-wide key stands for."""
    number = str(int.from_bytes(key[2:10], "big"))
    named = {
        keys.AUDIT: f"audit row {number}", keys.CURSOR: f"the cursor of source {key[2:].hex()}", keys.GLOBAL_BREAKER:
        "the global breaker", keys.CHAIN: "the end of the audit log", keys.META: "the store's own record", keys.OWNER:
        f"owner {number}", keys.PIN: f"the before-image of user {_text(key[2:])!r}", keys.UNREADABLE:
        f"an unreadable row of source {number}", keys.ROLLOUT: "the rollout, which so counts as off,",
        keys.BUDGET: "the budget of resets a minute", keys.INTENT: f"the intent of attempt {key[2:].hex()}",
        keys.SWEPT: f"what sweeps noted of user {_text(key[2:])!r}",
    }
    return named.get(key[:2], f"the record at {key!r}")


def _unreadable(subject: str, name: str, error: Exception, remedy: str = _BACKUP) -> Finding:
    """The finding for a record that fails its checksum or does not decode."""
    text = error.problem if isinstance(error, ResetError) else str(error)
    why = "fails its checksum" if "checksum" in text else text
    return Finding("records", "error", subject, f"{name} cannot be read: {why}", remedy)


def _names_in(content: bytes) -> tuple[str, str]:
    """The attempt and the user of an audit row; "" for what it does not name, and for the user of an erased one."""
    end = _ROW_HEADER_BYTES + int.from_bytes(content[_PUBLIC_AT:_ROW_HEADER_BYTES], "big")
    try:
        personal = content[end:]
        return _names(content[_ROW_HEADER_BYTES:end]).attempt_id, _names(personal).user if personal else ""
    except msgspec.MsgspecError as error:
        message = f"an audit row does not decode: {error}"
        raise StoreCorrupt(message) from error


def _row_at(get: Get, seq: bytes) -> tuple[str | None, str | None]:
    """What the audit row of that number names; (None, None) where there is none, or none that can be read."""
    key = keys.AUDIT + seq
    stored = get(key)
    try:
        return (None, None) if stored is None else _names_in(codec.unseal(key, stored))
    except BAD:
        return None, None
