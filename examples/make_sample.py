"""Make `sample.csv`: eight invented people, fourteen months, and everything that goes wrong in real files.

    python examples/make_sample.py                 # writes statemachine/cli/sample.csv
    python examples/make_sample.py --seed 7 -o -   # another sample, to standard output

Nobody's data: every figure comes from the courses below and a seeded generator.  The same seed gives the same bytes on
every machine, so only `random.Random.random` is used (its sequence is promised for all versions) and only + - * /.

Who is who:

    ada    kg, a steady course with two gaps above 30 days
    ben    lb, a wrong but believable value right after a gap, and later an unbelievable one after another
    cleo   st, a wrong first value (kilograms entered as pounds)
    dev    kg, loses 12 kg from one reading to the next, and it is real
    eli    lb, a questionnaire that differs by 6 kg from the scale, and it is right
    fay    kg, an account whose first readings are a toddler's, so that its first reset fails until hers come
    gus    kg, exact duplicates, rows out of order, a second reading of the same instant, rows that are no measurements
    hana   kg, a light adult who steps on the scale every week or so: 44 kg is no body-mass index
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import random
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

SAMPLE = Path(__file__).resolve().parents[1] / "statemachine" / "cli" / "sample.csv"
SEED = 20250601
START = datetime(2025, 6, 1, tzinfo=UTC)
DAYS = 425
KG = {"kg": 1.0, "lb": 0.45359237, "st": 14 * 0.45359237}
NOISE_KG = 0.35
WANDER_KG = 0.45
WANDER_KEPT = 0.8
HEADER = ("user_id", "timestamp", "weight", "unit", "source")


class Person(NamedTuple):
    """A course of body weight and how it is measured.

    `course`: (day, kg) corners, joined by straight lines; two corners on neighbouring days are a jump.
    `gaps`: (first, last) days without readings.  `pause`: mean days between readings.  `offset`: hours from UTC.
    """

    user: str
    unit: str
    source: str
    offset: int
    pause: float
    course: tuple[tuple[float, float], ...]
    gaps: tuple[tuple[float, float], ...] = ()


class Row(NamedTuple):
    """One line of the file, and the instant by which it is put in its place."""

    at: datetime
    cells: tuple[str, str, str, str, str]


PEOPLE = (
    Person("ada", "kg", "patient device", 1, 3.6, ((0, 81.5), (96, 79.8), (141, 83.0), (290, 80.4), (331, 78.2), (425, 77.5)),
           ((96, 141), (290, 331))),
    Person("ben", "lb", "patient device", -5, 2.2, ((0, 104.0), (130, 100.5), (190, 99.0), (310, 96.0), (352, 97.5), (425, 96.5)),
           ((130, 190), (310, 352))),
    Person("cleo", "st", "scale", 0, 4.2, ((0, 68.0), (200, 66.5), (425, 67.5))),
    Person("dev", "kg", "scale", 2, 3.8, ((0, 93.0), (205, 94.5), (206, 82.5), (425, 81.0))),
    Person("eli", "lb", "connected health", -8, 4.4, ((0, 88.0), (150, 88.5), (161, 82.0), (425, 83.5))),
    Person("fay", "kg", "patient device", 1, 4.6, ((0, 71.0), (120, 69.0), (250, 70.0), (288, 72.0), (425, 70.5)), ((250, 288),)),
    Person("gus", "kg", "scale", 10, 3.7, ((0, 85.0), (425, 82.0))),
    Person("hana", "kg", "connected health", 9, 7.0, ((0, 44.2), (180, 43.6), (217, 45.0), (425, 44.4)), ((180, 217),)),
)


def make(seed: int = SEED) -> str:
    """The whole file as text, header first, lines ended by a line feed."""
    dice = random.Random(seed)  # noqa: S311 - a sample, no secret
    rows: list[Row] = []
    for person in PEOPLE:
        readings = list(course(person, dice))
        rows += INCIDENTS.get(person.user, lambda _, given: given)(person, readings)
    rows.sort(key=lambda row: row.at)  # a stable sort: rows of one instant keep their order
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(row.cells for row in delayed(rows))
    return text.getvalue()


def course(person: Person, dice: random.Random) -> list[Row]:
    """The person's readings: the course at that instant, what the body wanders around it, and noise; none in a gap."""
    rows = []
    day, wander = dice.random(), 0.0
    while day < DAYS:
        wander = WANDER_KEPT * wander + WANDER_KG * normal(dice)
        if not any(first < day < last for first, last in person.gaps):
            minute = 340 + int(150 * dice.random())  # between 05:40 and 08:10 local time
            local = int(day) + (minute / 60 - person.offset) / 24
            rows.append(reading(person, local, weight_kg(person.course, day) + wander + NOISE_KG * normal(dice)))
        day += max(0.7, person.pause * (0.4 + 1.2 * dice.random()))
    return rows


def normal(dice: random.Random) -> float:
    """A draw of mean 0 and variance 1: the sum of twelve uniform ones less six, the same bits everywhere."""
    return sum(dice.random() for _ in range(12)) - 6.0


def weight_kg(corners: tuple[tuple[float, float], ...], day: float) -> float:
    """The course at a day, by straight lines between its corners."""
    for (before, low), (after, high) in itertools.pairwise(corners):
        if before <= day <= after:
            return low + (high - low) * (day - before) / (after - before)
    return corners[-1][1]


def reading(person: Person, day: float, kg: float, *, source: str = "", unit: str = "") -> Row:
    """A row of `kg` at `day`, written in the person's own unit and zone unless told otherwise."""
    at = START + timedelta(seconds=int(day * 86_400))
    unit = unit or person.unit
    value = f"{kg / KG[unit]:.2f}" if unit == "st" else f"{kg / KG[unit]:.1f}"
    return Row(at, (person.user, written(at, person.offset), value, unit, source or person.source))


def written(at: datetime, offset: int) -> str:
    """The instant in the person's zone, ISO 8601."""
    return at.astimezone(timezone(timedelta(hours=offset))).isoformat()


def changed(row: Row, **cells: str) -> Row:
    """The row with some cells replaced."""
    return row._replace(cells=tuple(cells.get(name, cell) for name, cell in zip(HEADER, row.cells, strict=True)))  # type: ignore[arg-type]


def after_gap(person: Person, rows: list[Row], gap: int) -> int:
    """The number of the first reading after one of the person's gaps."""
    end = START + timedelta(days=person.gaps[gap][1])
    return next(number for number, row in enumerate(rows) if row.at >= end - timedelta(days=1))


def wrong_after_gap(person: Person, rows: list[Row]) -> list[Row]:
    """Ben's visitor is believed after 60 days and taken back; a mistyped 32 kg after 42 days is not believed at all."""
    first = after_gap(person, rows, 0)
    rows[first] = changed(rows[first], weight="185.4")  # 84.1 kg; he weighs 99
    second = after_gap(person, rows, 1)
    rows[second] = changed(rows[second], weight="70.5")
    return rows


def wrong_first_value(_person: Person, rows: list[Row]) -> list[Row]:
    """Cleo's first entry is her kilograms with the wrong unit chosen."""
    return [changed(rows[0], weight="68.3", unit="lb"), *rows[1:]]


def questionnaire(person: Person, rows: list[Row]) -> list[Row]:
    """Eli is ill and off the scale for eleven days, then tells a questionnaire what he weighs now."""
    quiet = [row for row in rows if not START + timedelta(days=149) < row.at < START + timedelta(days=161.7)]
    return [*quiet, reading(person, 161.4, 82.0, source="questionnaire")]


def toddler(person: Person, rows: list[Row]) -> list[Row]:
    """Fay's account starts with her child: a reset at 9 to 12 kg fails, the breaker opens, refuses, probes and recovers.

    Three failures open it for about an hour; a fourth and fifth reading fall into that hour; a sixth probes and fails
    too, which opens it for about two; Fay's own readings come after that, and the first of them is the probe that succeeds.
    """
    tries = ((0.30, 9.4), (1.30, 9.6), (2.30, 9.5), (2.31, 11.8), (2.32, 11.7), (3.30, 9.7), (3.34, 71.2))
    return [*(reading(person, day, kg) for day, kg in tries), *(row for row in rows if row.at >= START + timedelta(days=5))]


def mishaps(_person: Person, rows: list[Row]) -> list[Row]:
    """Gus's exports overlap, his scale sometimes weighs twice, and a few of its lines are no measurements."""
    mended = list(rows)
    for number in (12, 13, 14, 40):
        mended.insert(mended.index(rows[number]) + 1, rows[number])
    twice = rows[25]
    mended.insert(mended.index(twice) + 1, changed(twice, weight=f"{float(twice.cells[2]) + 0.4:.1f}"))
    for number, cells in ((30, {"weight": "nan"}), (33, {"timestamp": "2025-13-45T07:00:00+10:00"}),
                          (36, {"timestamp": "2099-01-01T07:00:00+10:00"}), (50, {"weight": "82,5 kg?"})):
        mended[mended.index(rows[number])] = changed(rows[number], **cells)
    return mended


INCIDENTS = {
    "ben": wrong_after_gap, "cleo": wrong_first_value, "eli": questionnaire, "fay": toddler, "gus": mishaps,
}


def delayed(rows: list[Row]) -> list[Row]:
    """The rows in the order of the file: three of Gus's arrive after two later ones of his."""
    own = [row for row in rows if row.cells[0] == "gus"]
    for number in (60, 70, 80):
        rows.remove(own[number])
        rows.insert(rows.index(own[number + 2]) + 1, own[number])
    return rows


def main() -> None:
    """Write the sample where the arguments say."""
    parser = argparse.ArgumentParser(description="Make the sample of invented body-weight readings.")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("-o", "--output", default=str(SAMPLE), help='a file, or "-"')
    arguments = parser.parse_args()
    text = make(arguments.seed)
    if arguments.output == "-":
        sys.stdout.write(text)
    else:
        Path(arguments.output).write_bytes(text.encode())


if __name__ == "__main__":
    main()
