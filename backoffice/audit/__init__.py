"""The audit log, for staff: read, export, retention. Changes are recorded by `runtime.audit` where they are made."""
