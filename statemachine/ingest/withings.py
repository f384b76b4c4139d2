"""Withings `weight.csv`: local times without a zone, the unit in the header, the header in the account's language."""

from __future__ import annotations

from typing import Final

from statemachine.ingest.generic import role_of, split_unit, width_of
from statemachine.ingest.layout import Layout, Opening

DATE_NAMES: Final = frozenset((
    "date", "datum", "fecha", "data", "dato", "dátum", "päivämäärä", "ημερομηνία", "дата", "tarih",
    "日付", "日期", "날짜",
))
WEIGHT_NAMES: Final = frozenset((
    "weight", "gewicht", "poids", "peso", "vikt", "vægt", "vekt", "paino", "waga", "masa ciała", "váha", "hmotnost",
    "hmotnosť", "testsúly", "súly", "βάρος", "вес", "вага", "kilo", "ağırlık", "体重", "體重", "체중", "몸무게",  # noqa: RUF001 - not an i
))
# Date, weight, and at least so many masses in the weight's own unit: the export's shape in any language.
_MASSES_MIN: Final = 3


def recognise_withings(opening: Opening) -> Layout | None:
    """The layout of a Withings export, None for anything else.

    Its first column is the date and its second the weight with its unit in parentheses; where the language is not
    known here, three columns of masses in one unit right after the first tell it too.
    """
    header = opening.records[0]
    if len(header) < 2 or any(role and role.role in {"user", "unit", "source"} for role in map(role_of, header)):  # noqa: PLR2004
        return None
    weight = split_unit(header[1])
    if weight is None or not header[1].endswith(")"):
        return None
    known = header[0].casefold() in DATE_NAMES and weight[0].casefold() in WEIGHT_NAMES
    masses = [split_unit(name) for name in header[1:1 + _MASSES_MIN]]
    shaped = len(masses) == _MASSES_MIN and all(mass and mass[1] == weight[1] for mass in masses)
    if not known and not (shaped and split_unit(header[0]) is None):
        return None
    return Layout(opening.delimiter, opening.skip + 1, width_of(header), 0, 1,
                  written_unit=weight[1], default_source="withings")
