"""Alerts: hooks that are told of what somebody must know, after the commit, beside the audit log and never in its way.

What is promised: an alert is best effort, the stored audit log is the record.  A commit waits for no hook and fails for
none: a full queue drops and counts, a hook that raises or hangs is tried again a few times and then given up, a process
that dies takes what was queued with it.  A hook may also be told twice (its answer came too late): the store's id, `seq`
and the event together name an alert.  `replay` tells hooks again of all that the log holds, from any row on.
"""

from statemachine.alerts.dispatch import AlertCounts, AlertLimits, Alerts, Replayed, broken, replay, tell, try_hooks
from statemachine.alerts.hooks import AlertFailed, AlertRefused, Command, Hook, Webhook, named
from statemachine.alerts.values import Alert

__all__ = [
    "Alert", "AlertCounts", "AlertFailed", "AlertLimits", "AlertRefused", "Alerts", "Command", "Hook", "Replayed", "Webhook",
    "broken", "named", "replay", "tell", "try_hooks",
]
