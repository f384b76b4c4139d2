"""resetguard: crash-safe, transactional resets of per-user estimator state over an ACID versioned LMDB store.

Start with `Store.open`, `ResetManager` and `Processor`; ARCHITECTURE.md tells how they fit together.
"""

import sys

if sys.platform == "win32":
    message = ("resetguard does not run on Windows: it needs the locks of POSIX, and what a rename and a sync promise there; use "
               "Linux, for example under WSL 2, with the store on a disk of its own")
    raise ImportError(message)

from statemachine.alerts import Command, Webhook
from statemachine.attempt import Checkpoint, ResetResult
from statemachine.breaker import BreakerPolicy, GlobalBreakerPolicy
from statemachine.clock import Clock, Ids
from statemachine.errors import (
    BreakerOpen,
    CommitInDoubt,
    ConflictError,
    ContractBroken,
    FixTheInput,
    InvalidInput,
    InvalidTransition,
    InvariantViolation,
    MutationFailed,
    ResetError,
    ResetValidationError,
    StoreBusy,
    StoreCorrupt,
    StoreForeign,
    StoreFull,
    StoreHurt,
    StoreUnavailable,
    TryLater,
    UserUnknown,
    VersionPruned,
)
from statemachine.estimator import BODY_WEIGHT, BodyWeight, Estimator, Operation
from statemachine.machine import Phase
from statemachine.manager import Health, ResetManager
from statemachine.policy import ResetParameters, ResetPolicy
from statemachine.processor import Outcome, Processor
from statemachine.rollout import Rollout, RolloutProvider
from statemachine.state import EstimatorState, Measured, Measurement, Reading
from statemachine.store import Store, StoreLimits
from statemachine.store.records import Loaded
from statemachine.transaction import ResetTransaction
from statemachine.validation import Limits, Rule, StateValidator, Violation, finite_everywhere

__all__ = [
    "BODY_WEIGHT",
    "BodyWeight",
    "BreakerOpen",
    "BreakerPolicy",
    "Checkpoint",
    "Clock",
    "Command",
    "CommitInDoubt",
    "ConflictError",
    "ContractBroken",
    "Estimator",
    "EstimatorState",
    "FixTheInput",
    "GlobalBreakerPolicy",
    "Health",
    "Ids",
    "InvalidInput",
    "InvalidTransition",
    "InvariantViolation",
    "Limits",
    "Loaded",
    "Measured",
    "Measurement",
    "MutationFailed",
    "Operation",
    "Outcome",
    "Phase",
    "Processor",
    "Reading",
    "ResetError",
    "ResetManager",
    "ResetParameters",
    "ResetPolicy",
    "ResetResult",
    "ResetTransaction",
    "ResetValidationError",
    "Rollout",
    "RolloutProvider",
    "Rule",
    "StateValidator",
    "Store",
    "StoreBusy",
    "StoreCorrupt",
    "StoreForeign",
    "StoreFull",
    "StoreHurt",
    "StoreLimits",
    "StoreUnavailable",
    "TryLater",
    "UserUnknown",
    "VersionPruned",
    "Violation",
    "Webhook",
    "finite_everywhere",
]
