"""What a key stands for, in words, and what to do where its record cannot be read: errors name no raw bytes.

A key of a user is the name, a NUL and a letter; a store-wide key is a NUL and a letter (`statemachine.store.keys`).
"""

from __future__ import annotations

import shlex
from typing import Final

_NUMBER_BYTES: Final = 8
_BACKUP: Final = "restore the store from a backup with `resetguard restore-store`"
_OF_A_USER: Final = {
    b"b": "the breaker of {}", b"i": "a measurement of {}", b"r": "the count of what is kept aside of {}", b"s": "the head of {}",
    b"v": "version {number} of {}",
}
_OF_A_USER_BY_PREFIX: Final = {b"p": "the before-image of {}", b"w": "what sweeps noted of {}"}
_STORE_WIDE: Final = {
    b"a": "audit row {number}", b"b": "the budget of resets a minute", b"c": "the cursor of a source", b"g": "the global breaker",
    b"h": "the end of the audit log", b"i": "the intent of an attempt", b"m": "the store's own record", b"o": "owner {number}",
    b"q": "an unreadable row of source {number}", b"r": "the rollout",
}


def record(key: bytes) -> str:
    """The record at a key in words: which it is and of whom."""
    name, _, rest = key.partition(b"\0")
    letter, number = rest[:1], int.from_bytes(rest[1:1 + _NUMBER_BYTES], "big")
    if name and letter in _OF_A_USER:
        return _OF_A_USER[letter].format(repr(_text(name)), number=2**64 - 1 - number)
    if not name and letter in _OF_A_USER_BY_PREFIX:
        return _OF_A_USER_BY_PREFIX[letter].format(repr(_text(rest[1:])))
    if not name and letter in _STORE_WIDE:
        return _STORE_WIDE[letter].format(number=number)
    return f"the record at key {key!r}"


def remedy(key: bytes) -> str:
    """What to do where the record at a key is damaged, with the command."""
    name, _, rest = key.partition(b"\0")
    if name and rest[:1] == b"s":
        return f"`resetguard recover --user {shlex.quote(_text(name))}` walks back to the newest good version"
    if name and rest[:1] == b"v":
        return "`resetguard doctor` says whether anything needs it"
    if name and rest[:1] == b"b":
        return f"`resetguard breaker release {shlex.quote(_text(name))}` closes it anew"
    if not name and rest[:1] in (b"g", b"b"):
        return f"`resetguard breaker release --global` {'closes it anew' if rest[:1] == b'g' else 'drops it'}"
    if (name and rest[:1] == b"r") or (not name and rest[:1] == b"p"):
        return f"`resetguard rebuild {shlex.quote(_text(name or rest[1:]))} --from FILE` writes it anew"
    if not name and rest[:1] == b"h":
        return "`resetguard recover` finds it again from the newest row"
    if not name and rest[:1] == b"r":
        return "set it anew with `resetguard rollout set --mode on|shadow|off`"
    return _BACKUP


def _text(user: bytes) -> str:
    return user.decode("utf-8", "backslashreplace")
