"""Hypothesis profiles, chosen by HYPOTHESIS_PROFILE; where that is not set, `ci` when CI is set and `dev` otherwise."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

# Few cores under xdist and coverage make single examples slow without anything being wrong: no deadline, no `too_slow`.
settings.register_profile("base", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("dev", settings.get_profile("base"), max_examples=100)
settings.register_profile("ci", settings.get_profile("base"), max_examples=50, derandomize=True)
settings.register_profile("long", settings.get_profile("base"), max_examples=2_000)
# One failure is enough to kill a mutant: few examples, always the same, and no shrinking.
settings.register_profile("mutation", settings.get_profile("ci"), max_examples=12, database=None,
                          phases=[Phase.explicit, Phase.generate])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))
