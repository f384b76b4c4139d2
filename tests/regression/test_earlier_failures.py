"""The 26 failures of an earlier system, each as the right behaviour; and proof that each test bites."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.regression import checks_disk, checks_rules
from tests.regression.guards import REMOVALS, Removal
from tests.regression.scene import refused

if TYPE_CHECKING:
    from pathlib import Path

FAILURES = range(1, 27)
MODULE_OF = {name: module for module in (checks_disk, checks_rules) for name in vars(module) if name.startswith("check_")}


def check(number: int, store_path: Path) -> None:
    """Run the check of one failure on a store that does not exist yet."""
    name = f"check_{number:02}"
    getattr(MODULE_OF[name], name)(store_path)


def test_failure_01_a_torn_head_loses_no_user(tmp_path: Path) -> None:
    """A user whose head is torn or gone is still there, with every version, and goes on from its log."""
    checks_disk.check_01(tmp_path / "store")


def test_failure_02_what_comes_back_from_disk_is_what_went_there(tmp_path: Path) -> None:
    """Instants, pairs and arrays come back from disk with their types, so that recovery and restore work on them."""
    checks_disk.check_02(tmp_path / "store")


def test_failure_03_a_rollback_undoes_disk_and_memory(tmp_path: Path) -> None:
    """A failed reset leaves the stored bytes as they were, even when it failed inside the write transaction."""
    checks_disk.check_03(tmp_path / "store")


def test_failure_04_a_rollback_touches_one_user(tmp_path: Path) -> None:
    """Rolling back one user's reset leaves what others committed meanwhile, also within one batch."""
    checks_disk.check_04(tmp_path / "store")


def test_failure_05_nothing_returned_aliases_what_is_stored(tmp_path: Path) -> None:
    """Nothing taken from a load can be changed, and an array handed over may change afterwards without effect."""
    checks_disk.check_05(tmp_path / "store")


def test_failure_06_nan_poisons_nothing(tmp_path: Path) -> None:
    """What is no weight is quarantined as no evidence, and the next measurement is accepted."""
    checks_rules.check_06(tmp_path / "store")


def test_failure_07_a_user_id_is_never_a_path(tmp_path: Path) -> None:
    """User ids that look like paths work and make no file; those that no store can hold are refused."""
    checks_disk.check_07(tmp_path / "store")


def test_failure_08_a_rollback_restores_every_field(tmp_path: Path) -> None:
    """After a rollback, and after a return to a checkpoint, every field is what it was."""
    checks_disk.check_08(tmp_path / "store")


def test_failure_09_the_second_measurement_works(tmp_path: Path) -> None:
    """The second and third measurement of each user are accepted, singly, in a batch and after reopening."""
    checks_rules.check_09(tmp_path / "store")


def test_failure_10_failing_resets_open_one_users_breaker(tmp_path: Path) -> None:
    """Failing resets open that user's breaker, which survives reopening and lets one probe through; others are not refused."""
    checks_rules.check_10(tmp_path / "store")


def test_failure_11_a_failing_gap_reset_is_recorded_and_survived(tmp_path: Path) -> None:
    """A failing gap reset leaves its row, falls back, loses nothing, and succeeds after the cooldown."""
    checks_rules.check_11(tmp_path / "store")


def test_failure_12_a_failing_first_reset_is_recorded(tmp_path: Path) -> None:
    """A failing first reset is in the audit log, its measurement is kept aside, and the next one starts the user."""
    checks_rules.check_12(tmp_path / "store")


def test_failure_13_validators_refuse_nan_and_indefinite_matrices(tmp_path: Path) -> None:
    """No NaN, however deep, no indefinite covariance and no wrong type passes validation or becomes durable."""
    checks_rules.check_13(tmp_path / "store")


def test_failure_14_exceptions_pass_and_results_stay(tmp_path: Path) -> None:
    """Leaving the block swallows no exception, and the transaction tells its result afterwards."""
    checks_rules.check_14(tmp_path / "store")


def test_failure_15_a_measurement_from_the_future_is_kept_aside(tmp_path: Path) -> None:
    """A measurement from 2099 is quarantined, changes no state, and the next one goes on in order."""
    checks_rules.check_15(tmp_path / "store")


def test_failure_16_naive_and_aware_instants_do_not_meet(tmp_path: Path) -> None:
    """A naive instant is refused unless a zone is declared, and aware ones of any offset are ordered by time."""
    checks_rules.check_16(tmp_path / "store")


def test_failure_17_two_workers_lose_no_update(tmp_path: Path) -> None:
    """Of two attempts from one version one conflicts, and threads and processes together lose no update."""
    checks_disk.check_17(tmp_path / "store")


def test_failure_18_the_audit_log_is_a_log(tmp_path: Path) -> None:
    """Every outcome is in the log after reopening, with who and why, and a changed row is found."""
    checks_disk.check_18(tmp_path / "store")


def test_failure_19_a_read_error_is_not_no_state(tmp_path: Path) -> None:
    """An unreadable state raises or quarantines, starts no initial reset, and overwrites nothing."""
    checks_disk.check_19(tmp_path / "store")


def test_failure_20_an_unparsable_date_is_kept_as_written(tmp_path: Path) -> None:
    """A date that cannot be read becomes a quarantined row with its raw text, never now."""
    checks_rules.check_20(tmp_path / "store")


def test_failure_21_a_unit_is_never_guessed(tmp_path: Path) -> None:
    """45 kg stays 45 kg, and a number without a unit is quarantined until one is declared."""
    checks_rules.check_21(tmp_path / "store")


def test_failure_22_not_any_value_is_believed_after_a_gap(tmp_path: Path) -> None:
    """After a gap an implausible value is held, and the true ones after it are all accepted."""
    checks_rules.check_22(tmp_path / "store")


def test_failure_23_a_restore_is_no_measurement(tmp_path: Path) -> None:
    """A restored state is a version without measurements, and what was consumed before stays known."""
    checks_disk.check_23(tmp_path / "store")


def test_failure_24_a_corrupt_newest_version_is_walked_past(tmp_path: Path) -> None:
    """Where the newest version is corrupt, the newest good one is found, named, and gone on from, once."""
    checks_disk.check_24(tmp_path / "store")


def test_failure_25_a_wrong_reset_is_revoked(tmp_path: Path) -> None:
    """A reset that later readings contradict is revoked in favour of the state before it."""
    checks_rules.check_25(tmp_path / "store")


def test_failure_25_a_wrong_reset_is_revoked_while_still_adapting(tmp_path: Path) -> None:
    """The same where the state before the wrong reset was itself still adapting."""
    checks_rules.check_25_adapting(tmp_path / "store")


def test_failure_26_part_of_a_covariance_is_no_covariance(tmp_path: Path) -> None:
    """Replacing part of a covariance so that it is none is caught, and resets replace the cross terms."""
    checks_rules.check_26(tmp_path / "store")


@pytest.mark.parametrize("removal", REMOVALS, ids=lambda removal: f"{removal.number:02}-{removal.guard.replace(' ', '-')}")
def test_each_guard_matters(removal: Removal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its guard taken out of the library, each failure is back, and its check says so."""
    with monkeypatch.context() as patched:
        removal.patch(patched)
        refused(removal.raises, check, removal.number, tmp_path / "store")


def test_each_failure_has_a_check_and_a_guard() -> None:
    """No failure of the list is without its check, its test and a guard whose removal is tried."""
    assert {removal.number for removal in REMOVALS} == set(FAILURES)
    for number in FAILURES:
        assert f"check_{number:02}" in MODULE_OF
        assert [name for name in globals() if name.startswith(f"test_failure_{number:02}_")]
