"""Write the golden store of the schema that the program has: a record of every kind, made by the library itself.

Run it once, with the program of that schema, when a schema is about to be raised: python -m tests.golden.make_store
A file that is there is never changed: it is what stores in the field look like.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec
import zstandard

from statemachine import codec
from statemachine.breaker import BreakerPolicy, Now
from statemachine.erasure import prune_audit
from statemachine.processor import Processor, SourceRow
from statemachine.store import keys
from statemachine.store.draft import BreakerEvent
from statemachine.store.records import Unreadable
from tests.regression.scene import BY, CountedIds, opened, raw, tear, weighed, working

HERE: Final = Path(__file__).parent


def file_of(schema: int) -> Path:
    """The golden store of a schema: its records, as msgpack pairs of key and value, compressed."""
    return HERE / f"schema-{schema}.msgpack.zst"


def build(path: Path) -> None:
    """Fill a new store with a record of every kind."""
    with working(path, ids=CountedIds()) as (store, manager, processor):
        for user, kg in (("amy", 61.25), ("ben", 92.5)):
            processor.process_batch(weighed(user, day, kg + day % 3 / 8) for day in range(70))
            for _ in range(12):  # so that images are demoted and compressed
                manager.perform_reset(user, **BY)
            processor.process_batch(weighed(user, day, kg) for day in range(70, 72))
            processor.process(weighed(user, 73, kg + 40))  # held
            processor.process(weighed(user, 72, kg + 41))  # held as well, in its place by time
            processor.process(weighed(user, 10.5, kg))  # late
            processor.process(weighed(user, 9000, kg))  # from the future
        now = Now(store.clock.now_us(), store.clock.now_us())
        draft = store.draft()
        for _ in range(2):
            event = BreakerEvent(b"ben", BreakerPolicy(), "failure", store.ids.attempt_id(), 0, 0, now, None)
            draft.add_event(event)
        store.commit(draft)
        intake = Processor(manager).intake([(bytes(range(16)), "export.csv")], lambda *_: None)
        intake.add(0, SourceRow(0, None, Unreadable(line=7, raw="amy;heavy", reason="no number", user="amy")))
        intake.add(0, SourceRow(1, weighed("cid", 1, 70.0)))
        intake.flush()
        prune_audit(store, store.clock.now_us() + 1, **BY)
        manager.perform_reset("amy", **BY)
    tear(path, keys.head(b"cid"))
    with working(path, ids=CountedIds()) as (store, manager, _):
        store.ids.count = 10_000  # type: ignore[attr-defined]
        manager.recover("cid", **BY)


def main() -> None:
    """Write the file of the present schema."""
    target = file_of(codec.SCHEMA)
    if target.exists():
        sys.exit(f"{target} is there; a golden store is never written again")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "store"
        build(path)
        with raw(path) as txn, txn.cursor() as cursor:
            pairs = [(bytes(key), bytes(value)) for key, value in cursor.iternext()]
        with opened(path) as store:
            sys.stdout.write(f"{len(pairs)} records of {', '.join(store.users())}\n")
    target.write_bytes(zstandard.ZstdCompressor(level=19).compress(msgspec.msgpack.encode(pairs)))


if __name__ == "__main__":
    main()
