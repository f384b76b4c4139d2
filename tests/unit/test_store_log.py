"""The log of versions: steps and images, retention, reading back bit for bit, damage of every kind of record, walking back."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from statemachine import (
    BreakerPolicy,
    GlobalBreakerPolicy,
    MutationFailed,
    Processor,
    ResetManager,
    Store,
    StoreCorrupt,
    StoreLimits,
    VersionPruned,
)
from statemachine.codec import COMPRESSED, unseal
from statemachine.estimator import BODY_WEIGHT
from statemachine.processor import SourceRow
from statemachine.recovery import Recovered
from statemachine.state import Reading
from statemachine.store import keys, log
from statemachine.store.records import Head, Unreadable
from tests.regression.scene import BY, START, broken, events, fill, head, opened, raw, records, states, tear, weighed, working

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

EVERY: Final = log.KEYFRAME_VERSIONS
AT_HAND: Final = log.IMAGES_AT_HAND
CALM: Final[dict[str, Any]] = {
    "breaker": BreakerPolicy(failures_max=10**6, failure_rate_max=None),
    "global_breaker": GlobalBreakerPolicy(users_max=None, failure_rate_max=None),
}


def walked_back(manager: ResetManager) -> Recovered | None:
    """What a recovery did, apart from its id."""
    recovered = manager.recover("u")
    return None if recovered is None else recovered._replace(attempt_id="")


def course(day: int) -> float:
    """A weight that no gate minds."""
    return 80.0 + (day * 7 % 11) / 20


class Written:
    """A user's log as it grows: the state of every version, as it stood when it was the head."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.manager = ResetManager(store, **CALM)
        self._processor = Processor(self.manager)
        self.states: dict[int, bytes] = {}
        self.resets: list[int] = []
        self.day = 0

    def note(self) -> int:
        """Note the head; its version."""
        now = self.store.head("u")
        assert now is not None
        self.states[now.version] = now.state
        return now.version

    def measure(self, times: int = 1) -> None:
        """Accept so many daily readings."""
        for _ in range(times):
            assert self._processor.process(weighed("u", self.day, course(self.day))).status == "accepted"
            self.day += 1
            self.note()

    def reset(self, operation: Callable[[Any], Any] | None = None) -> None:
        """Reset by hand, by the kind's own operations or the caller's lambda."""
        operations = None if operation is None else [("by hand", operation)]
        assert self.manager.perform_reset("u", operations=operations, **BY).outcome == "committed"
        self.resets.append(self.note())

    def restore(self, version: int) -> None:
        """Make an older version the head."""
        assert self.manager.restore("u", to_version=version, **BY).outcome == "committed"
        self.resets.append(self.note())

    def assert_readable(self, first: int = 1) -> None:
        """Every version from `first` on is in the log, without gaps, and folds to the bytes it had."""
        store, newest = self.store, max(self.states)
        assert store.version_range("u") == (first, newest)
        assert [info.version for info in store.history("u")] == list(range(first, newest + 1))
        for version in range(first, newest + 1):
            loaded = store.load("u", version)
            assert loaded is not None
            assert store.estimator.encode(loaded.state) == self.states[version], f"version {version}"
            assert loaded.violations == ()


def entries(store: Store) -> dict[int, bytes]:
    """The records of the user's log, framed as they are stored."""
    return dict(log.versions(store.engine.scan, b"u"))


def images(store: Store) -> dict[int, bool]:
    """The versions stored as images, and whether they are compressed."""
    found = {}
    for version, value in entries(store).items():
        if unseal(keys.version(b"u", version), value)[:1] == b"\2":
            found[version] = bool(value[2] & COMPRESSED)
    return dict(sorted(found.items()))


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Written]:
    with opened(tmp_path / "store", durability="process") as store:
        yield Written(store)


# Steps, images, retention

def test_measurements_are_steps_and_every_thirty_second_is_an_image(written: Written) -> None:
    """The first version is the initial reset's image; of the others only the keyframes are images, steps are small."""
    written.measure(3 * EVERY + 5)
    assert list(images(written.store)) == [1, EVERY, 2 * EVERY, 3 * EVERY]
    sizes = {version: len(value) for version, value in entries(written.store).items()}
    steps = [size for version, size in sizes.items() if version not in images(written.store)]
    assert max(steps) <= 48
    assert min(sizes[version] for version in images(written.store)) > 100
    written.assert_readable()
    infos = {info.version: info for info in written.store.history("u")}
    assert {info.kind for version, info in infos.items() if version > 1} == {"measurement"}
    assert infos[1].kind == "initial"
    assert infos[EVERY].reading == Reading(written.store.load("u", EVERY).state.kalman.at_us, (course(EVERY - 1),), 0.15)  # type: ignore[union-attr]


def test_every_reset_is_an_image_with_its_author_and_what_it_admitted(written: Written) -> None:
    """A reset's version tells its kind, the attempt that made it, its instant and how many measurements it took in."""
    written.measure(3)
    written.reset()
    written.reset(lambda s: s.replace(x0=81.0))
    written.restore(2)
    infos = list(written.store.history("u"))
    assert [(info.kind, info.image, info.admitted) for info in infos] == [
        ("initial", True, 1), ("measurement", False, 1), ("measurement", False, 1),
        ("admin", True, 0), ("admin", True, 0), ("restore", True, 0),
    ]
    authors = [row.public.attempt_id for row in written.store.audit("u")]
    assert [info.author for info in infos if info.image] == authors
    assert [version for version in (4, 5, 6) if written.store.load("u", version).author == authors[version - 3]] == [4, 5, 6]  # type: ignore[union-attr]
    written.assert_readable()


def test_ten_images_are_at_hand_and_older_ones_give_way(written: Written) -> None:
    """Of the images before the newest ten, those of resets are compressed and keyframes become the steps they also are."""
    for _ in range(7):
        written.measure(40)
        written.reset(lambda s: s.replace(x1=0.0))
    now = written.store.head("u")
    assert now is not None
    at_hand = now.images
    assert len(at_hand) == AT_HAND
    made = sorted({1, *written.resets, *range(EVERY, now.version + 1, EVERY)})
    assert list(at_hand) == made[-AT_HAND:]
    stored = images(written.store)
    older = [version for version in made if version < at_hand[0]]
    assert older, "there are images that have given way"
    for version in older:
        if version in (1, *written.resets):
            assert stored[version] is True, f"the reset's image {version} is compressed"
        else:
            assert version not in stored, f"keyframe {version} is a step again"
    assert [version for version in at_hand if stored[version]] == []
    written.assert_readable()


def test_a_reset_at_a_keyframe_number_stays_an_image(written: Written) -> None:
    """An image that is no measurement has no step to become."""
    written.measure(EVERY - 1)
    written.reset()
    assert written.resets == [EVERY]
    for _ in range(AT_HAND + 1):
        written.reset()
    assert images(written.store)[EVERY] is True
    written.assert_readable()


def moved(turn: int, state: Any) -> Any:
    """What no replay could decide anew: a caller's own change."""
    return state.replace(x0=80.0 + turn / 7, P=[[1.0 + turn / 3, 0.01], [0.01, 0.02]])


def test_every_version_reads_back_bit_for_bit(written: Written) -> None:
    """Lambdas, kinds, restores and measurements in any order: each version folds to the bytes that stood at the head."""
    written.measure(20)
    for turn in range(12):
        written.reset(partial(moved, turn))
        written.measure(turn * 3)
        if turn % 3 == 0:
            written.reset()
        if turn % 4 == 1:
            written.restore(1 + turn * 2)
        written.measure(2)
    written.assert_readable()
    assert len(written.states) > 8 * EVERY
    assert len(images(written.store)) > AT_HAND


def test_another_session_reads_the_same_bits(tmp_path: Path) -> None:
    """What was written by one session is read by the next, version by version."""
    path = tmp_path / "store"
    with opened(path, durability="process") as store:
        writing = Written(store)
        writing.measure(2 * EVERY)
        writing.reset()
        writing.measure(3)
    with opened(path) as store:
        assert states(store, "u") == [writing.states[version] for version in sorted(writing.states)]


def test_versions_that_were_never_written_are_refused(written: Written) -> None:
    """A version outside the log names the range that can be read; an unknown user has none."""
    written.measure(3)
    for version in (0, -1, 4, 2**70):
        with pytest.raises(VersionPruned, match="versions 1 to 3 are readable") as caught:
            written.store.load("u", version)
        assert (caught.value.first, caught.value.last, caught.value.user) == (1, 3, "u")
    with pytest.raises(VersionPruned, match="nothing is stored") as caught:
        written.store.load("stranger", 1)
    assert (caught.value.first, caught.value.last) == (0, 0)
    assert written.store.load("stranger") is None


@pytest.mark.parametrize("versions_max", [1, 2, 10, 33, 64])
def test_retention_keeps_the_newest_versions_readable(tmp_path: Path, versions_max: int) -> None:
    """Old versions go with a newer image: the first readable one is then an image, it is named, and all after it fold."""
    limits = StoreLimits(versions_max=versions_max)
    with opened(tmp_path / "store", durability="process", limits=limits) as store:
        written = Written(store)
        firsts = set()
        for turn in range(8):
            written.measure(25)
            written.reset()
            first, newest = store.version_range("u")
            assert newest - first + 1 == min(newest, versions_max)
            assert first in images(store)
            firsts.add(first)
            written.assert_readable(first)
            if first > 1:
                for version in (1, first - 1):
                    with pytest.raises(VersionPruned) as caught:
                        store.load("u", version)
                    assert (caught.value.first, caught.value.last) == (first, newest)
                kept = written.manager.last_known_good("u")  # the pin of the reset has it, whatever the log has dropped
                with pytest.raises(VersionPruned):
                    written.manager.restore("u", to_version=first - 1 if first - 1 != kept else first - 2, **BY)
            written.restore(max(first, newest - turn))
        assert len(firsts) > 2
        now = store.head("u")
        assert now is not None
        assert now.first == store.version_range("u")[0]


def test_a_keyframe_that_became_the_first_version_stays_an_image(tmp_path: Path) -> None:
    """Retention that ends at a keyframe must not make a step of it later: nothing stands before it to step from."""
    with opened(tmp_path / "store", durability="process", limits=StoreLimits(versions_max=40)) as store:
        written = Written(store)
        written.measure(2 * EVERY - 1 - AT_HAND)
        for version in range(2 * EVERY - AT_HAND, 2 * EVERY + 8):
            written.reset() if version % 2 and version != 2 * EVERY else written.measure()
        assert store.version_range("u")[0] == EVERY, "the log begins at the keyframe"
        for _ in range(6):
            written.measure(3)
            written.reset()
            written.assert_readable(store.version_range("u")[0])


def test_retention_stops_at_damage_that_only_older_versions_can_mend(tmp_path: Path) -> None:
    """Where the version to keep cannot be folded, nothing is dropped."""
    path, limits = tmp_path / "store", StoreLimits(versions_max=5)
    fill(path, "u", [course(day) for day in range(4)])
    tear(path, keys.version(b"u", 3))
    with opened(path, limits=limits) as store:
        written = Written(store)
        written.day = 4
        for first in (1, 1, 9):  # version 9 folds from the image of version 7, past the damage
            written.measure(2)
            written.reset()
            assert store.version_range("u")[0] == first
        written.states = {version: state for version, state in written.states.items() if version >= 9}
        written.assert_readable(9)


# By time and in order

def test_version_at_gives_the_newest_version_not_after_an_instant(written: Written) -> None:
    """Between two events the earlier one's version stands; before the first there is none."""
    written.measure(EVERY + 3)
    at = [weighed("u", day, 80.0).at_us for day in range(EVERY + 3)]
    assert written.store.version_at("u", at[0] - 1) is None
    for version, instant in enumerate(at, start=1):
        assert written.store.version_at("u", instant) == version
        assert written.store.version_at("u", instant + 1) == version
    assert written.store.version_at("stranger", at[0]) is None


def test_history_names_every_version_in_order(written: Written) -> None:
    """History is the log from the oldest version to the newest, with instants and readings."""
    written.measure(EVERY + 2)
    written.reset()
    infos = list(written.store.history("u"))
    assert [info.version for info in infos] == list(range(1, EVERY + 4))
    assert [info.at_us for info in infos[:-1]] == [weighed("u", day, 80.0).at_us for day in range(EVERY + 2)]
    assert [info.reading.values[0] for info in infos if info.reading] == [course(day) for day in range(1, EVERY + 2)]
    assert list(written.store.history("stranger")) == []


def test_users_lie_apart(tmp_path: Path) -> None:
    """Users whose names are prefixes of each other, or sort strangely, have each their own log."""
    names = ["a", "aa", "a\x01", "\x01", "z\u00ff", "\U0001F600", "a" * 255]
    with working(tmp_path / "store", durability="process") as (store, _, processor):
        for count, name in enumerate(names, start=1):
            for day in range(count):
                processor.process(weighed(name, day, 70.0 + count))
        assert list(store.users()) == sorted(names, key=str.encode)
        for count, name in enumerate(names, start=1):
            assert store.version_range(name) == (1, count)
            assert head(store, name).kalman.at_us == weighed(name, count - 1, 1.0).at_us
            assert len(states(store, name)) == count


# Damage

SOURCE: Final = hashlib.blake2b(b"a file", digest_size=16).digest()


def populate(path: Path) -> None:
    """A store with at least one record of every kind, of user "u"; "v" is a bystander."""
    with working(path) as (_, manager, processor):
        processor.process_batch(weighed("u", day, course(day)) for day in range(EVERY + 1))
        processor.process(weighed("u", EVERY + 1, 160.0))  # held
        processor.process(weighed("v", 0, 70.0))
        manager.perform_reset("u", **BY)  # an image, a probation and its pin
        with pytest.raises(MutationFailed):
            manager.perform_reset("u", operations=[("break", broken)], **BY)  # the breakers
        intake = processor.intake([(SOURCE, "a file")], lambda *_: None)
        intake.add(0, SourceRow(0, weighed("w", 0, 60.0)))
        intake.add(0, SourceRow(1, None, Unreadable(2, "1,2,3", "no weight")))
        intake.flush()


def identity_key(path: Path) -> bytes:
    """The identity of the user's held measurement."""
    with opened(path) as store:
        return held_key(store)


def unreadable_key(path: Path) -> bytes:
    """The row that was no measurement."""
    with opened(path) as store:
        found = store.engine.first(keys.UNREADABLE, keys.after(keys.UNREADABLE))
        assert found is not None
        return found[0]


class Kind(NamedTuple):
    """A kind of record: its key, and what is asked of the store when that record is damaged."""

    name: str
    key: Callable[[Path], bytes]
    reads: tuple[Callable[[Store], object], ...]


def put(store: Store, key: bytes, value: bytes) -> None:
    """Store bytes as they are, beneath an open store."""
    with store.engine.turn():
        store.engine.update(lambda put_one: put_one(key, value))


def reset(store: Store) -> object:
    return ResetManager(store).perform_reset("u", **BY)


def seen_again(store: Store) -> object:
    return store.draft().identity(held_key(store))


def held_key(store: Store) -> bytes:
    prefix = keys.identities(b"u")
    return [key for key, _ in store.engine.scan(prefix, keys.after(prefix))][-1]


def commit_nothing(store: Store) -> object:
    draft = store.draft()
    draft.put(b"\0z", b"")
    return store.commit(draft)


KINDS: Final = (
    Kind("step", lambda _: keys.version(b"u", 3), (
        lambda s: s.load("u", 3), lambda s: s.load("u", EVERY - 1), lambda s: list(s.history("u")),
        lambda s: s.version_at("u", 0), lambda s: ResetManager(s).restore("u", to_version=3, **BY))),
    Kind("keyframe", lambda _: keys.version(b"u", EVERY), (
        lambda s: s.load("u", EVERY), lambda s: s.load("u", EVERY + 1), lambda s: list(s.history("u")))),
    Kind("image", lambda _: keys.version(b"u", EVERY + 2), (
        lambda s: s.load("u", EVERY + 2), lambda s: list(s.history("u")))),
    Kind("first image", lambda _: keys.version(b"u", 1), (
        lambda s: s.load("u", 1), lambda s: s.load("u", 2), lambda s: s.load("u", EVERY - 1))),
    Kind("identity", identity_key, (lambda s: list(s.quarantine("u")), seen_again)),
    Kind("pin", lambda _: keys.pin(b"u"), (lambda s: s.draft().pin(b"u"),)),
    Kind("aside", lambda _: keys.aside(b"u"), (
        lambda s: s.kept_count("u"), lambda s: list(s.quarantine("u")), lambda s: s.draft().aside(b"u"))),
    Kind("unreadable", unreadable_key, (lambda s: list(s.quarantine()),)),
    Kind("cursor", lambda _: keys.cursor(SOURCE), (
        lambda s: s.cursor(SOURCE), lambda s: Processor(ResetManager(s)).intake([(SOURCE, "a file")], lambda *_: None))),
    Kind("audit", lambda _: keys.audit(2), (
        lambda s: list(s.audit()), lambda s: list(s.audit("v")), lambda s: list(s.attempts()))),
    Kind("chain", lambda _: keys.CHAIN, (lambda s: s.audit_tail(), reset, commit_nothing)),
    Kind("breaker", lambda _: keys.breaker(b"u"), (reset, lambda s: s.draft().breaker(b"u"))),
    Kind("global breaker", lambda _: keys.GLOBAL_BREAKER, (reset, lambda s: s.draft().breaker(b""))),
)


@pytest.fixture(scope="module")
def populated(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The data of a populated store, to be written where a test wants it."""
    path = tmp_path_factory.mktemp("populated") / "store"
    populate(path)
    return (path / "data.mdb").read_bytes()


@pytest.fixture
def store_path(tmp_path: Path, populated: bytes) -> Path:
    path = tmp_path / "store"
    opened(path).close()
    (path / "data.mdb").write_bytes(populated)
    return path


def damaged(path: Path, key: bytes, change: Callable[[bytes], bytes]) -> None:
    """Change the stored bytes of a record."""
    with raw(path) as txn:
        value = txn.get(key)
        assert value, f"nothing is stored under {key!r}"
        txn.put(key, change(bytes(value)))


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_a_damaged_record_is_never_taken_for_data(store_path: Path, kind: Kind) -> None:
    """Whichever byte of a record changes, whatever reads it raises StoreCorrupt; mended, all of it answers again."""
    path = store_path
    key = kind.key(path)
    with raw(path) as txn:
        whole = bytes(txn.get(key) or b"")
    assert whole
    places = {0, 1, 2, 4, 9, 16, len(whole) // 2, len(whole) - 1}
    damages = [whole[:at] + bytes((whole[at] ^ 1,)) + whole[at + 1:] for at in places]
    damages += [b"", whole[:-1], whole[:15], whole + b"\0", bytes(len(whole))]
    with opened(path, durability="process") as store:
        for damage in damages:
            put(store, key, damage)
            for read in kind.reads:
                with pytest.raises(StoreCorrupt):
                    read(store)
        put(store, key, whole)
        for read in kind.reads:
            read(store)


def test_every_byte_of_a_step_and_of_a_head_counts(store_path: Path) -> None:
    """No single flipped bit of the two records that matter most goes unseen."""
    with opened(store_path, durability="process") as store:
        good = states(store, "u")
        for key, read in ((keys.version(b"u", 3), lambda: store.load("u", 3)), (keys.head(b"u"), lambda: store.head("u"))):
            whole = store.engine.get(key)
            assert whole is not None
            for bit in range(0, 8 * len(whole), 3):
                changed = bytearray(whole)
                changed[bit // 8] ^= 1 << bit % 8
                put(store, key, bytes(changed))
                with pytest.raises(StoreCorrupt):
                    read()
            put(store, key, whole)
        assert states(store, "u") == good


def test_a_damaged_meta_record_stops_the_opening(store_path: Path) -> None:
    """Not even its id is known then: the store does not open, and is not changed."""
    tear(store_path, keys.META)
    with pytest.raises(StoreCorrupt):
        opened(store_path)
    tear(store_path, keys.META)
    with opened(store_path) as store:
        assert store.version_range("v") == (1, 1)


def test_a_damaged_owner_record_stops_its_owner_alone(store_path: Path) -> None:
    """An owner whose commit number cannot be read commits nothing; the next opening is another owner."""
    with opened(store_path) as store:
        key = keys.owner(store.committer.owner)
        put(store, key, b"\xd7" + bytes(20))
        before = store.audit_tail()
        with pytest.raises(StoreCorrupt):
            commit_nothing(store)
        with pytest.raises(StoreCorrupt):
            ResetManager(store).perform_reset("v", **BY)
        assert store.audit_tail() == before
    with working(store_path) as (store, manager, _):
        assert manager.perform_reset("v", **BY).outcome == "committed"
        assert [outcome for *_, outcome in events(store, "v")] == ["committed", "rolled_back", "committed"]
        assert store.verify_audit().problem == ""


def test_the_way_to_an_outcome_is_checked(store_path: Path) -> None:
    """An attempt's key leads to the row of that attempt or to an error, never to another attempt's outcome."""
    with opened(store_path) as store:
        first, second = (row.public.attempt_id for row in list(store.audit())[:2])
        for elsewhere in (2, 99, 0):
            put(store, keys.attempt(first), elsewhere.to_bytes(8, "big"))
            with pytest.raises(StoreCorrupt):
                store.inspect(first)
            with pytest.raises(StoreCorrupt):
                list(store.attempts(first))
        found = store.inspect(second)
        assert found is not None
        assert found.public.attempt_id == second


@pytest.mark.parametrize(("source", "target"), [
    (keys.version(b"u", 3), keys.version(b"u", 4)),
    (keys.version(b"u", EVERY), keys.version(b"u", EVERY + 2)),
    (keys.version(b"v", 1), keys.version(b"u", 1)),
    (keys.head(b"v"), keys.head(b"u")),
    (keys.breaker(b"u"), keys.GLOBAL_BREAKER),
    (keys.audit(1), keys.audit(2)),
])
def test_a_record_under_another_key_fails_its_checksum(store_path: Path, source: bytes, target: bytes) -> None:
    """A whole record that turns up as another version, user or row is found, although none of its bytes is wrong."""
    with raw(store_path) as txn:
        value = bytes(txn.get(source) or b"")
        assert value
        txn.put(target, value)
    with opened(store_path) as store:
        assert unseal(source, value)
        with pytest.raises(StoreCorrupt):
            unseal(target, store.engine.get(target) or b"")
        reads: dict[bytes, Callable[[], object]] = {
            keys.head(b"u"): lambda: store.head("u"), keys.GLOBAL_BREAKER: lambda: reset(store),
            keys.audit(2): lambda: list(store.audit()),
        }
        with pytest.raises(StoreCorrupt):
            reads.get(target, lambda: list(store.history("u")))()


# Damaged heads and walking back

def test_a_damaged_head_is_folded_from_the_log(store_path: Path) -> None:
    """With its log whole a user whose head cannot be read loses nothing: load says so, recover mends it in place."""
    with opened(store_path) as store:
        good, newest = states(store, "u"), store.version_range("u")[1]
    tear(store_path, keys.head(b"u"))
    with working(store_path) as (store, manager, _):
        loaded = store.load("u")
        assert loaded is not None
        assert loaded.head_damaged
        assert (loaded.version, store.estimator.encode(loaded.state)) == (newest, good[-1])
        broken_bytes = store.engine.get(keys.head(b"u"))
        assert walked_back(manager) == Recovered("u", newest, newest, 0)
        assert manager.recover("u") is None
        assert store.engine.get(keys.damaged(b"u", newest + 1)) == broken_bytes, "what it held is kept"
        mended = store.load("u")
        assert mended is not None
        assert (mended.version, mended.head_damaged, store.estimator.encode(mended.state)) == (newest, False, good[-1])
        assert states(store, "u") == good
        row = list(store.audit("u"))[-1]
        assert (row.public.event, row.public.outcome, row.public.new_version) == ("state.recovered", "recovered", newest)
        assert row.personal.details == {"from_version": newest, "left_out": 0, "head_bytes_kept": True}
        assert store.verify_audit().problem == ""


@pytest.mark.parametrize("how", ["older bytes", "deleted"])
def test_a_head_that_is_not_the_end_of_its_log_is_noticed(tmp_path: Path, how: str) -> None:
    """A head put back from an earlier moment is whole by its checksum, a missing one looks like a new user: both are found."""
    path = tmp_path / "store"
    fill(path, "u", [80.0, 80.1])
    with opened(path) as store:
        older = store.engine.get(keys.head(b"u")) or b""
    good = fill(path, "u", [80.2, 80.3], first_day=2)
    with raw(path) as txn:
        if how == "deleted":
            assert txn.delete(keys.head(b"u"))
        else:
            txn.put(keys.head(b"u"), older)
    with working(path) as (store, manager, processor):
        with pytest.raises(StoreCorrupt, match="does not match its log") as caught:
            store.head("u")
        assert caught.value.user == "u"
        loaded = store.load("u")
        assert loaded is not None
        assert (loaded.version, loaded.head_damaged, store.estimator.encode(loaded.state)) == (4, True, good[-1])
        with pytest.raises(StoreCorrupt):
            manager.perform_reset("u", **BY)
        outcome = processor.process(weighed("u", 4, 80.2))
        assert (outcome.status, outcome.version, outcome.reset) == ("accepted", 5, None)
        assert states(store, "u")[:4] == good
        assert [event for event, *_ in events(store, "u")].count("reset.committed") == 1, "no second initial reset"


@pytest.mark.parametrize("torn", [1, 2, 3])
def test_walking_back_past_damaged_versions(tmp_path: Path, torn: int) -> None:
    """The newest good version becomes a new one; the measurements after it are set aside with the reason, and audited."""
    path, count = tmp_path / "store", EVERY + 5
    good = fill(path, "u", [course(day) for day in range(count)])
    fill(path, "v", [70.0])
    with opened(path) as store:
        bystander = records(store, "v")
    tear(path, keys.head(b"u"), *(keys.version(b"u", count - at) for at in range(torn)))
    back = count - torn
    with working(path) as (store, manager, processor):
        with pytest.raises(StoreCorrupt, match=f"version {back} is the newest") as caught:
            store.load("u")
        assert caught.value.newest_good == back
        damaged_head = store.engine.get(keys.head(b"u"))
        assert walked_back(manager) == Recovered("u", back, count + 1, torn)
        assert store.engine.get(keys.damaged(b"u", count + 1)) == damaged_head
        loaded = store.load("u")
        assert loaded is not None
        assert (loaded.version, store.estimator.encode(loaded.state)) == (count + 1, good[back - 1])
        kept = list(store.quarantine("u"))
        assert [(row.at_us, row.disposition) for row in kept] == [
            (weighed("u", day, 80.0).at_us, "quarantined") for day in range(back, count)]
        assert {row.reason for row in kept} == {f"its version was damaged; the state went back to version {back}"}
        assert store.kept_count("u") == torn
        row = list(store.audit("u"))[-1]
        assert (row.public.event, row.public.base_version, row.public.new_version) == ("state.recovered", count, count + 1)
        assert row.personal.details == {"from_version": back, "left_out": torn, "head_bytes_kept": True}
        assert processor.process(weighed("u", count, course(count))).version == count + 2
        assert records(store, "v") == bystander
        for version in range(1, back + 1):
            loaded = store.load("u", version)
            assert loaded is not None
            assert store.estimator.encode(loaded.state) == good[version - 1]
        for version in range(back + 1, count + 1):
            with pytest.raises(StoreCorrupt):
                store.load("u", version)
        assert store.verify_audit().problem == ""


def test_a_later_good_image_spares_the_walk(tmp_path: Path) -> None:
    """Damage before the newest image takes the versions between away, and nothing else: the state is not set back."""
    path = tmp_path / "store"
    good = fill(path, "u", [course(day) for day in range(EVERY + 5)])
    tear(path, keys.head(b"u"), keys.version(b"u", 5))
    with working(path) as (store, manager, _):
        assert walked_back(manager) == Recovered("u", EVERY + 5, EVERY + 5, 0)
        assert store.kept_count("u") == 0
        readable = []
        for version in range(1, EVERY + 6):
            try:
                loaded = store.load("u", version)
            except StoreCorrupt:
                continue
            assert loaded is not None
            assert store.estimator.encode(loaded.state) == good[version - 1]
            readable.append(version)
        assert readable == [1, 2, 3, 4, *range(EVERY, EVERY + 6)]


def test_a_recovered_user_has_its_images_in_order(tmp_path: Path) -> None:
    """The new head knows the newest ten images, so that retention goes on as if nothing had happened."""
    path = tmp_path / "store"
    with opened(path, durability="process") as store:
        writing = Written(store)
        for _ in range(13):
            writing.measure(5)
            writing.reset()
        before = store.head("u")
    assert before is not None
    tear(path, keys.head(b"u"))
    with opened(path, durability="process") as store:
        manager = ResetManager(store, **CALM)
        assert manager.recover("u") is not None
        after = store.head("u")
        assert after is not None
        assert (after.images, after.first, after.version) == (before.images, before.first, before.version)
        writing.store = store
        writing.assert_readable()
    assert type(after) is Head


def test_a_user_of_whom_nothing_can_be_read_is_left_as_it_is(tmp_path: Path) -> None:
    """No version readable: recover raises and changes nothing, a reset is refused, new measurements are kept, not lost."""
    path = tmp_path / "store"
    fill(path, "u", [80.0, 80.1, 80.2])
    tear(path, keys.head(b"u"), *(keys.version(b"u", version) for version in (1, 2, 3)))
    with working(path) as (store, manager, processor):
        before = records(store, "u")
        with pytest.raises(StoreCorrupt, match="no version can be read") as caught:
            store.load("u")
        assert caught.value.newest_good is None
        with pytest.raises(StoreCorrupt, match="no version of 'u' can be read"):
            manager.recover("u")
        with pytest.raises(StoreCorrupt):
            manager.perform_reset("u", "initial", measurement=weighed("u", 3, 80.0), **BY)
        outcome = processor.process(weighed("u", 3, 80.3))
        assert (outcome.status, outcome.reset) == ("quarantined", None)
        assert records(store, "u") == before
        assert [(kept.user, kept.disposition) for kept in store.quarantine()] == [("u", "unreadable")]
        assert store.knows("u")
        assert "recovered" not in [outcome for *_, outcome in events(store)]


def test_a_healthy_user_is_not_recovered(store_path: Path) -> None:
    """Where head and log agree there is nothing to do, and nothing is written."""
    with working(store_path) as (store, manager, _):
        before = store.audit_tail()
        assert manager.recover("u") is None
        assert manager.recover("stranger") is None
        assert store.audit_tail() == before


def test_a_version_missing_from_the_middle_is_damage(tmp_path: Path) -> None:
    """A gap in the log is corruption, not pruning: what needs the missing step cannot be read, and says so."""
    path = tmp_path / "store"
    fill(path, "u", [course(day) for day in range(6)])
    with raw(path) as txn:
        assert txn.delete(keys.version(b"u", 3))
    with opened(path) as store:
        for version in (4, 6):
            with pytest.raises(StoreCorrupt, match="version 3 of 'u' is missing"):
                store.load("u", version)
        assert store.load("u", 2) is not None
        assert store.load("u") is not None, "the head does not need the log"


def test_a_state_of_the_log_is_the_estimators_word(written: Written) -> None:
    """What is loaded is decoded by the store's estimator, whole: no field is lost on the way."""
    written.measure(5)
    loaded = written.store.load("u", 5)
    now = written.store.load("u")
    assert loaded is not None
    assert now is not None
    assert loaded.state == now.state
    assert BODY_WEIGHT.decode(written.states[5]) == loaded.state
    assert len(loaded.state.buffer) == 5
    assert loaded.state.at > START
