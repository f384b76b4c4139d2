"""specs/storage.md: its tables decode a real store, without the library's codec, and name every record and field there is."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import lmdb
import msgspec
import pytest
import xxhash
import zstandard

from statemachine import Store, codec
from statemachine import marks as marks_module
from statemachine.breaker import Breaker, Budget
from statemachine.marks import RUNNING, Mark, Marks
from statemachine.rollout import Rollout
from statemachine.state import Adaptation, Counters, Kalman
from statemachine.store import engine as door
from statemachine.store import intents, keys, life, log, records
from tests.regression.scene import BY, CountedIds, opened, raw, weighed, working

DOCUMENT: Final = (Path(__file__).parents[2] / "specs" / "storage.md").read_text(encoding="utf-8")
SECTIONS: Final = {text.partition("\n")[0]: text for text in re.split(r"^## ", DOCUMENT, flags=re.MULTILINE)[1:]}
STRUCTS: Final[dict[str, Any]] = {
    **{name: getattr(records, name) for name in ("Head", "Probation", "Image", "Pin", "Swept", "Aside", "Identity", "Unreadable",
                                                "Meta", "Cursor")},
    "Breaker": Breaker, "Budget": Budget, "Rollout": Rollout, "Intent": intents.Intent, "Mark": Mark,
}
PARTS: Final[dict[str, Any]] = {"Kalman": Kalman, "Adaptation": Adaptation, "Counters": Counters}
USER: Final = b"ann"


def table(section: str, first: str) -> list[list[str]]:
    """The rows of the one table in a section whose first column is so called."""
    lines = SECTIONS[section].splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith(f"| {first} |")]
    rows = []
    for line in lines[start + 2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


class Field(msgspec.Struct):
    """One line of a table of offsets."""

    offset: int
    size: int
    format: str
    name: str


def fields(section: str) -> list[Field]:
    """The table of offsets in a section; the last line, without a format, is what follows the fixed part."""
    return [Field(int(offset), int(size or 0), form, name) for offset, size, form, name in table(section, "offset")]


def read(section: str, data: bytes) -> list[Any]:
    """The fixed fields in some bytes, by the section's table alone."""
    return [struct.unpack_from(field.format, data, field.offset)[0] for field in fields(section) if field.format]


def block(name: str) -> dict[str, bytes]:
    """The bytes of a worked example, by the word before them."""
    (text,) = re.findall(rf"```hex {name}\n(.*?)```", DOCUMENT, re.DOTALL)
    return {line.split()[0]: bytes.fromhex("".join(line.split()[1:])) for line in text.strip().splitlines()}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, bytes]:
    """Every record of a store of one user: 33 days of weights, then twelve resets."""
    path = tmp_path_factory.mktemp("storage") / "store"
    with working(path, ids=CountedIds()) as (_, manager, processor):
        for day, kg in enumerate((80.0, 80.5, *[80.25] * 31)):
            assert processor.process(weighed("ann", day, kg)).status == "accepted"
        for _ in range(12):
            manager.perform_reset("ann", **BY)
    with raw(path) as txn, txn.cursor() as cursor:
        return {bytes(key): bytes(value) for key, value in cursor.iternext()}


def content(stored: dict[bytes, bytes], key: bytes) -> bytes:
    """What is inside the frame of a record, checked by the document's words."""
    data = stored[key]
    magic, schema, flags, zero, length, total = read("Frame", data)
    assert (magic, schema, zero, length) == (0xD7, codec.SCHEMA, 0, len(data) - 16)
    assert total == xxhash.xxh3_64_intdigest(key + data[:8] + data[16:])
    return zstandard.ZstdDecompressor().decompress(data[16:], max_output_size=1 << 24) if flags & 1 else data[16:]


def version_key(number: int) -> bytes:
    return USER + b"\0v" + (2**64 - 1 - number).to_bytes(8, "big")


@pytest.mark.parametrize("section", ["Frame", "Versions", "Audit row", "Marks"])
def test_tables_of_offsets_have_no_holes(section: str) -> None:
    lines = fields(section)
    assert lines[0].offset == 0
    assert all(field.offset + field.size == after.offset for field, after in pairwise(lines))
    assert all(struct.calcsize(field.format) == field.size for field in lines if field.format)


def test_the_worked_step_is_what_lies_there(stored: dict[bytes, bytes]) -> None:
    """Byte for byte, and by the tables it says what the text says of it."""
    example = block("step")
    assert stored[example["key"]] == example["frame"] + example["content"]
    assert example["key"] == version_key(2)
    kind, kernel, at_us, r, value = read("Versions", content(stored, example["key"]))
    assert (kind, kernel, at_us, r, value) == (1, 1, 1_767_682_800_000_000, 0.15, 80.5)
    assert "2026-01-06T07:00:00Z" in DOCUMENT


def test_the_worked_identity_is_what_lies_there(stored: dict[bytes, bytes]) -> None:
    key = block("identity")["key"]
    digest = hashlib.blake2b(b"80.5\0kg\0scale", digest_size=12).digest()
    assert key == USER + b"\0i" + (1_767_682_800_000_000 + 2**63).to_bytes(8, "big") + digest
    disposition, values, r, *_ = msgspec.msgpack.decode(content(stored, key))
    assert (disposition, values, r) == (0, [80.5], 0.15)


def test_versions_are_steps_and_images_as_said(stored: dict[bytes, bytes]) -> None:
    """Of 33 measurements and twelve resets: ten images are at hand, older ones are compressed, the keyframe is a step again."""
    kinds = {number: content(stored, version_key(number))[0] for number in range(1, 46)}
    assert {number for number, kind in kinds.items() if kind == 2} == {1, *range(34, 46)}
    assert kinds[32] == 1, "it has become the step that it also is"
    assert stored[version_key(34)][2] == stored[version_key(35)][2] == 1, "compressed"
    assert stored[version_key(36)][2] == 0
    head = dict(zip(records.Head.__struct_fields__, msgspec.msgpack.decode(content(stored, USER + b"\0s")), strict=True))
    assert head["images"] == list(range(36, 46))
    image = dict(zip(records.Image.__struct_fields__, msgspec.msgpack.decode(content(stored, version_key(45))[1:]), strict=True))
    assert image["state"] == head["state"]


def test_the_figures_of_the_log_are_those_of_the_code() -> None:
    assert (log.KEYFRAME_VERSIONS, log.IMAGES_AT_HAND, log.VERSIONS_MAX) == (32, 10, 100_000)
    for figure in ("divisible by 32", "ten newest images", "100,000 versions"):
        assert figure in DOCUMENT


def test_the_state_is_an_array_of_these_parts(stored: dict[bytes, bytes]) -> None:
    image = msgspec.msgpack.decode(content(stored, version_key(45))[1:])
    kalman, buffer, adaptation, counters, readings_max = msgspec.msgpack.decode(image[0])
    named = {name: told.split(", ") for name, told in table("Records", "part")}
    assert list(named) == ["Kalman", "buffer", "Adaptation", "Counters", "readings_max"]
    for name, values in (("Kalman", kalman), ("Adaptation", adaptation), ("Counters", counters)):
        assert tuple(named[name]) == PARTS[name].__struct_fields__
        assert len(values) == len(named[name])
    assert list(struct.iter_unpack("<qd", buffer))[-1][1] == 80.25
    assert readings_max == 30


def test_every_record_and_its_fields_are_named_in_their_order() -> None:
    assert {name: tuple(told.split(", ")) for name, told in table("Records", "record")} == {
        name: kind.__struct_fields__ for name, kind in STRUCTS.items()}


def test_every_kind_of_key_is_named() -> None:
    """Both ways, by its letter."""
    named = {}
    for key, kind, _ in table("Keys", "key"):
        letter = re.search(r"`\\0(\w)`", key)
        assert letter is not None, key
        named[key.startswith("U"), letter[1]] = kind
    wide = {(False, prefix[1:].decode()): kind for prefix, kind in keys._STORE_WIDE.items()}
    own = {(True, letter.decode()): kind for letter, kind in keys._OF_A_USER.items()}
    assert named == wide | own
    for (of_user, short), kind in named.items():
        assert keys.kind_of((USER if of_user else b"") + b"\0" + short.encode()) == kind
    unframed = {kind for _, kind, told in table("Keys", "key") if told.startswith("unframed")}
    assert unframed == keys.UNFRAMED


def test_every_record_of_the_store_is_framed_or_named_as_unframed(stored: dict[bytes, bytes]) -> None:
    for key in stored:
        if keys.kind_of(key) not in keys.UNFRAMED:
            content(stored, key)
    seqs = sorted(int.from_bytes(key[2:], "big") for key in stored if key.startswith(b"\0a"))
    assert {stored[key] for key in stored if key.startswith(b"\0t")} == {seq.to_bytes(8, "big") for seq in seqs}
    assert {key for key in stored if key.startswith(USER + b"\0a")} == {USER + b"\0a" + seq.to_bytes(8, "big") for seq in seqs}


def test_the_chain_can_be_verified_by_the_document(stored: dict[bytes, bytes]) -> None:
    before = bytes(32)
    for seq in range(1, 14):
        row = content(stored, b"\0a" + seq.to_bytes(8, "big"))
        prev_hash, digest, length = read("Audit row", row)
        public, personal = row[68:68 + length], row[68 + length:]
        assert prev_hash == before
        assert digest == hashlib.sha256(personal).digest()
        assert json.loads(public)["seq"] == seq
        assert "salt" in json.loads(personal)
        before = hashlib.sha256(prev_hash + digest + public).digest()
    end = content(stored, b"\0h")
    assert (int.from_bytes(end[:8], "big"), end[8:]) == (13, before)


def test_a_slot_of_the_marks_is_laid_out_as_said(tmp_path: Path) -> None:
    mark = Mark(RUNNING, "reset.interrupted", "interrupted", CountedIds.text(1), "ann", "admin", "", 1, 0, 5)
    marks = Marks(tmp_path / "1")
    slot = marks.fill(mark)
    marks.abandon()
    data = (tmp_path / "1").read_bytes()
    assert len(data) == 2_048 * 1_024
    assert (marks_module.SLOTS, marks_module.SLOT_BYTES, marks_module.TEXT_BYTES_MAX) == (2_048, 1_024, 90)
    start = slot * 1_024
    state, zero, length, checksum = read("Marks", data[start:start + 1_024])
    held = data[start + 8:start + 8 + length]
    assert (state, zero, checksum) == (1, 0, zlib.crc32(held))
    assert dict(zip(Mark.__struct_fields__, msgspec.msgpack.decode(held), strict=True))["attempt_id"] == CountedIds.text(1)
    assert not any(data[start + 8 + length:start + 1_024])
    assert (marks_module.FREE, RUNNING, marks_module.WAITING, marks_module.ENDED) == (0, 1, 2, 3)


def test_the_directory_holds_what_is_said(tmp_path: Path) -> None:
    named = {name.strip("`") for name, _ in table("Directory", "name")}
    assert named == {door.DATA, door.LMDB_LOCK, door.WRITER_LOCK, "owners/N", f"owners/N{marks_module.ASIDE}", f"{door.ANEW}/",
                     door.MANIFEST}
    with opened(tmp_path / "store") as store:
        assert {child.name for child in store.path.iterdir()} == {"data.mdb", "lock.mdb", "writer.lock", "owners"}
        assert {child.name for child in (store.path / "owners").iterdir()} == {"1"}
        modes = {child: child.stat().st_mode & 0o777 for child in (store.path, *store.path.rglob("*"))}
        assert {mode for child, mode in modes.items() if child.is_dir()} == {0o700}
        assert {mode for child, mode in modes.items() if child.is_file()} == {0o600}
        life.backup(store, tmp_path / "backup")
    manifest = json.loads((tmp_path / "backup" / "backup.json").read_bytes())
    assert list(manifest) == [name for name, _ in table("Backup", "field")]
    data = (tmp_path / "backup" / "data.mdb").read_bytes()
    assert (manifest["bytes"], manifest["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert not (tmp_path / "backup" / "owners").exists()
    magic, version = struct.unpack_from("<II", data, 16)
    assert (magic, version) == (0xBEEFC0DE, 1)


@pytest.mark.parametrize(("durability", "sync"), [("group", True), ("each", True), ("process", False)])
def test_lmdb_is_opened_as_said(tmp_path: Path, durability: Any, sync: bool) -> None:
    told: dict[str, Any] = {}

    def opener(*args: Any, **settings: Any) -> Any:
        told.clear()
        told.update(settings)
        return lmdb.open(*args, **settings)

    opened(tmp_path / "store").close()
    with Store.open(tmp_path / "store", durability=durability, opener=opener):
        pass
    said = {name.strip("`"): value for name, value in table("LMDB", "setting")}
    assert told["sync"] is sync
    assert said.pop("sync") == 'True; False with durability "process"'
    assert said.pop("writemap") == "False"
    assert not told.get("writemap", False)
    assert said.pop("lib_version").startswith(f"{told['lib_version']} ")
    assert said.pop("mode") == f"0o{told['mode']:o}"
    assert said == {name: str(told[name]) for name in said}


def test_the_schemas_are_those_that_are_read() -> None:
    assert [int(number) for number, _ in table("Schemas", "schema")] == list(codec.READABLE)
