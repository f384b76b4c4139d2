"""Weights as written, to kilograms.  A unit is read or declared, never guessed from the size of the number."""

from __future__ import annotations

import math
from typing import Final

from statemachine.errors import InvalidInput
from statemachine.ingest.rows import shown

WEIGHT_KG_MAX: Final = 1000.0
NO_WEIGHT: Final = "no weight: fill the field or remove the row"
NO_UNIT: Final = "no unit: declare --unit kg|lb|st"

# Kilograms as numerator / denominator: a gram is divided by 1000, because no double holds a thousandth.
KILOGRAM: Final = (1.0, 1.0)
POUND: Final = (0.45359237, 1.0)
STONE: Final = (14 * 0.45359237, 1.0)
GRAM: Final = (1.0, 1000.0)
UNITS: Final = {
    "kg": KILOGRAM, "kgs": KILOGRAM, "kilogram": KILOGRAM, "kilograms": KILOGRAM,
    "lb": POUND, "lbs": POUND, "pound": POUND, "pounds": POUND, "[lb_av]": POUND,
    "st": STONE, "stone": STONE, "stones": STONE, "[stone_av]": STONE,
    "g": GRAM, "gram": GRAM, "grams": GRAM,
}


def kilograms(value: str, unit: str) -> float:
    """The weight `value` (decimal point) in `unit`, in kg; raises InvalidInput with the reason and the remedy."""
    # Not cached: over many distinct values a cache costs three times what the conversion does.
    factor = UNITS.get(unit) or _factor(value, unit)
    try:
        kg = float(value) * factor[0] / factor[1]
    except ValueError as error:
        raise InvalidInput(_no_number(value)) from error
    if not 0.0 < kg <= WEIGHT_KG_MAX:
        if not math.isfinite(float(value)) and not any(character.isdigit() for character in value):
            raise InvalidInput(_no_number(value))
        message = (f"the weight {shown(value)} {unit} is no human weight "
                   f"(above 0, at most {WEIGHT_KG_MAX:.0f} kg): correct the value or its unit")
        raise InvalidInput(message)
    # float() takes digits of every script, and underscores between them: typing errors here.
    if not value.isascii() or "_" in value:
        raise InvalidInput(_no_number(value))
    return kg


def kilograms_with_comma(value: str, unit: str) -> float:
    """Like `kilograms`, for files whose decimal sign may be a comma; both signs in one number are refused."""
    if "," in value:
        if "." in value:
            message = f"the weight {shown(value)} has a comma and a point: write it without a thousands separator"
            raise InvalidInput(message)
        return kilograms(value.replace(",", "."), unit)
    return kilograms(value, unit)


def factor_of(unit: str) -> tuple[float, float] | None:
    """Kilograms as numerator and denominator, whatever the unit's case; None for an unknown unit."""
    return UNITS.get(unit.casefold())


def _factor(value: str, unit: str) -> tuple[float, float]:
    if not value:
        raise InvalidInput(NO_WEIGHT)
    if not unit:
        raise InvalidInput(NO_UNIT)
    factor = factor_of(unit)
    if factor is None:
        message = f"the unit {shown(unit)} is unknown: write kg, lb, st or g"
        raise InvalidInput(message)
    return factor


def _no_number(value: str) -> str:
    if not value:
        return NO_WEIGHT
    remedy = "write a decimal point" if "," in value else "write a plain number"
    return f"the weight {shown(value)} is no finite number: {remedy}"
