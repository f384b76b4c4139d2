"""The generic CSV, and the names by which its columns (and the keys of NDJSON) are known."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import msgspec

from statemachine.errors import InvalidInput
from statemachine.ingest.layout import Layout, Opening
from statemachine.ingest.rows import shown

# Earlier names win where a file has several of one role.
USER_NAMES: Final = ("user_id", "user", "userid", "patient", "patient_id", "subject", "subject_id")
TIME_NAMES: Final = ("timestamp", "effectivedatetime", "datetime", "date_time", "measured_at", "startdate", "date",
                     "time")
WEIGHT_NAMES: Final = ("weight", "body_weight", "bodyweight", "value")
UNIT_NAMES: Final = ("unit", "units")
SOURCE_NAMES: Final = ("source", "source_type", "sourcetype", "sourcename", "source_name", "device")
NAMES: Final = {"user": USER_NAMES, "time": TIME_NAMES, "weight": WEIGHT_NAMES, "unit": UNIT_NAMES,
                "source": SOURCE_NAMES}
_WITH_UNIT: Final = re.compile(r"(?P<name>[^()\[\]]+?)[ _]*[(\[ _](?P<unit>kg|lbs?|st)[)\]]?", re.IGNORECASE)


class Role(msgspec.Struct, frozen=True):
    """What a column holds: `rank` is lower for a name that wins, `unit` is what the name itself writes."""

    role: str
    rank: int
    unit: str = ""


@lru_cache(maxsize=4096)
def role_of(name: str) -> Role | None:
    """The role of a column or key by its name, whatever its case; None where it has none here."""
    plain = name.strip().casefold().replace("-", "_").replace(" ", "_")
    for role, names in NAMES.items():
        if plain in names:
            return Role(role, names.index(plain) + 1)
    name_unit = split_unit(name)
    if name_unit is not None and name_unit[0].casefold().replace("-", "_").replace(" ", "_") in WEIGHT_NAMES:
        # A name that writes its unit tells more than one that does not.
        return Role("weight", 0, name_unit[1])
    return None


def split_unit(name: str) -> tuple[str, str] | None:
    """A header such as "Weight (kg)" or "weight_lb" as name and unit (as written), None where it ends in no unit."""
    match = _WITH_UNIT.fullmatch(name.strip())
    return (match["name"].strip(), match["unit"]) if match else None


def recognise_generic(opening: Opening) -> Layout | None:
    """The layout of a file whose header has a column of time and one of weight, None for any other.

    Raises InvalidInput where two columns have the same name and a role.
    """
    header = opening.records[0]
    best: dict[str, tuple[int, int, str]] = {}
    columns: dict[str, int] = {}
    for index, name in enumerate(header):
        role = role_of(name)
        if role and name.casefold() in columns:
            message = f"two columns are named {shown(name)}: rename or remove one"
            raise InvalidInput(message)
        columns[name.casefold()] = index
        if role and (role.role not in best or role.rank < best[role.role][0]):
            best[role.role] = (role.rank, index, role.unit)
    if "time" not in best or "weight" not in best:
        return None
    index_of = {role: index for role, (_, index, _) in best.items()}
    day = columns.get("date", -1)
    return Layout(
        opening.delimiter, opening.skip + 1, width_of(header), index_of["time"], index_of["weight"],
        user=index_of.get("user", -1), unit=index_of.get("unit", -1), source=index_of.get("source", -1),
        clock=columns.get("time", -1) if index_of["time"] == day else -1, written_unit=best["weight"][2],
    )


def width_of(header: tuple[str, ...]) -> int:
    """How many columns a header has, empty ones at its end not counted."""
    width = len(header)
    while width and not header[width - 1]:
        width -= 1
    return width


def names_user(header: tuple[str, ...]) -> bool:
    """Whether a header has a column of users, as no export of one person's data has."""
    return any(role is not None and role.role == "user" for role in map(role_of, header))
