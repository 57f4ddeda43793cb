"""HTTP without any subject: admission before Robyn, routing, messages, fields, conditions, idempotency keys."""
