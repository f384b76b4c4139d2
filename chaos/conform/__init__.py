"""Whether an audit log is a behaviour of the protocol: a monitor, SPIN that follows the log, and logs to try both on."""
