"""The suites that come with the harness, by name, in the order in which a campaign runs them."""

from __future__ import annotations

from typing import Final

from chaos.suite import Suites
from chaos.suites.calls import Calls
from chaos.suites.deaths import Deaths
from chaos.suites.estimator import Estimators
from chaos.suites.interleavings import Interleavings
from chaos.suites.interrupts import Interrupts
from chaos.suites.media import Media
from chaos.suites.power import Power
from chaos.suites.resources import Resources

SUITES: Final[Suites] = {
    Calls.name: Calls,
    Interleavings.name: Interleavings,
    Power.name: Power,
    Resources.name: Resources,
    Media.name: Media,
    Estimators.name: Estimators,
    Deaths.name: Deaths,
    Interrupts.name: Interrupts,
}
