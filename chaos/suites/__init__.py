"""The suites that come with the harness, by name, in the order in which a campaign runs them."""

from __future__ import annotations

from typing import Final

from chaos.suite import Suites
from chaos.suites.calls import Calls
from chaos.suites.deaths import Deaths
from chaos.suites.interrupts import Interrupts

SUITES: Final[Suites] = {
    Calls.name: Calls,
    Deaths.name: Deaths,
    Interrupts.name: Interrupts,
}
