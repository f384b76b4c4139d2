"""The log: one append-only record per version, a step or an image, and the fold that reads any version back.

An accepted measurement is a step.  Everything else, and every version divisible by 32, is an image of the whole state.
Version V is the newest image at or before V, folded by `Estimator.step`.  Load, history, time travel, restore and
walk-back all go through `fold`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from statemachine import codec
from statemachine.errors import StoreCorrupt, StoreForeign, VersionPruned
from statemachine.estimator import Estimator
from statemachine.state import Reading
from statemachine.store import keys
from statemachine.store.draft import Draft, encoded
from statemachine.store.records import Head, Image, Probation

KEYFRAME_VERSIONS: Final = 32
IMAGES_AT_HAND: Final = 10
VERSIONS_MAX: Final = 100_000

Get = Callable[[bytes], bytes | None]


class NewVersion(msgspec.Struct, frozen=True, gc=False):
    """A version about to be appended: the state after it, who made it, and the event it stands for.

    `encode` is the estimator's, or that of somebody who has the bytes already.
    """

    state: Any
    author: str
    kind: str
    at_us: int
    admitted: tuple[bytes, ...] = ()
    reading: Reading | None = None
    encode: Callable[[Any], bytes] | None = None


def append(  # noqa: PLR0913 - the log's one door
    draft: Draft, estimator: Estimator, user: bytes, head: Head | None, new: NewVersion, *, run_since_us: int,
    reset_us: int, probation: Probation | None, rules: str, number: int | None = None, versions_max: int = VERSIONS_MAX,
) -> Head:
    """Append the next version to the draft and move the head to it; retention goes with it.  The head comes without bytes.

    `number` is given where the head could not be read: one above the highest version key.
    """
    version = number if number is not None else (head.version + 1 if head else 1)
    images = head.images if head else ()
    first = head.first if head else version
    key = keys.version(user, version)
    encode = new.encode or estimator.encode
    step = codec.encode_step(new.reading, estimator.kernel) if new.reading is not None else b""
    if step and version % KEYFRAME_VERSIONS:
        draft.put(key, step)
    else:
        image = Image(encoded(encode, new.state), estimator.kernel, new.author, new.kind, new.at_us, new.admitted, step)
        draft.put(key, bytes((codec.IMAGE,)) + codec.pack(image))
        images = (*images, version)
        if version - first >= versions_max:
            first = _prune(draft, estimator, user, first, version - versions_max + 1)
        if len(images) > IMAGES_AT_HAND:
            _demote(draft, keys.version(user, images[0]), first=images[0] <= first)
            images = images[1:]
    after = Head(version, b"", new.author, estimator.kernel, images, first, run_since_us, reset_us, rules, probation)
    draft.put_head(user, after, encode, new.state)
    return after


def _demote(draft: Draft, key: bytes, *, first: bool) -> None:
    """An image no longer at hand: a keyframe becomes the step it also is, a reset's image is compressed.

    The `first` readable version stays an image in any case: there is nothing before it that it could be a step from.
    """
    stored = draft.get(key)
    if stored is None:
        return
    try:
        content = codec.unseal(key, stored)
        image = _image(content)
    except StoreCorrupt:
        return  # it stays as it is, for whoever inspects the damage
    if image is not None and image.step and not first:
        draft.put(key, image.step)
    elif image is not None:
        draft.put(key, content, compress=True)


def _prune(draft: Draft, estimator: Estimator, user: bytes, first: int, keep: int) -> int:
    """Drop the versions before `keep`, which becomes an image; the first version readable from now on."""
    key = keys.version(user, keep)
    try:
        stored = draft.get(key)
        content = codec.unseal(key, stored) if stored is not None else b""
        if _image(content) is None:
            state = fold(draft.get, estimator, user, keep)
            at_us = estimator.at_us(state)
            image = Image(encoded(estimator.encode, state), estimator.kernel, "", "measurement", at_us, (), content)
            draft.put(key, bytes((codec.IMAGE,)) + codec.pack(image))
    except StoreCorrupt:
        return first  # nothing is dropped while the log has damage that only older versions can mend
    for version in range(first, keep):
        draft.delete(keys.version(user, version))
    return keep


def _image(content: bytes) -> Image | None:
    if content[:1] == bytes((codec.IMAGE,)):
        return codec.unpack(Image, content[1:])
    return None


def entry(get: Get, user: bytes, version: int) -> Image | tuple[Reading, int] | None:
    """The log's record of a version: its image, or the reading and kernel of its step; None where there is none."""
    key = keys.version(user, version)
    stored = get(key)
    if stored is None:
        return None
    return version_content(codec.unseal(key, stored))


def version_content(content: bytes) -> Image | tuple[Reading, int]:
    """A version's image, or the reading and kernel of its step, from the content of its record; raises StoreCorrupt."""
    return _image(content) or codec.decode_step(content)


def fold(get: Get, estimator: Estimator, user: bytes, version: int) -> Any:
    """The state at `version`, bit for bit; raises VersionPruned, StoreCorrupt, or StoreForeign for an unknown kernel."""
    steps: list[Reading] = []
    at = version
    while True:
        found = entry(get, user, at)
        if found is None:
            name = user.decode()
            if at == version:
                message = f"version {version} of {name!r} is not in the log"
                raise VersionPruned(message, first=0, last=0, user=name)
            message = f"version {at} of {name!r} is missing from the log"
            raise StoreCorrupt(message, user=name)
        if isinstance(found, Image):
            state = estimator.decode(found.state)
            break
        reading, kernel = found
        if kernel != estimator.kernel:
            message = f"version {at} of {user.decode()!r} was made by arithmetic {kernel}; this program has {estimator.kernel}"
            raise StoreForeign(message, user=user.decode())
        steps.append(reading)
        at -= 1
    for reading in reversed(steps):
        state = estimator.step(state, reading)
    return state


def versions(scan: Callable[[bytes, bytes], Iterator[tuple[bytes, bytes]]], user: bytes) -> Iterator[tuple[int, bytes]]:
    """The versions in the log with their records as stored, newest first."""
    prefix = keys.versions(user)
    for key, value in scan(prefix, keys.after(prefix)):
        yield keys.number_of(key), value
