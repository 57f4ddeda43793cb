"""The lifecycle of a process: settings, signals, readiness, logs, background tasks."""
