"""Running the backoffice: health, metrics, its own description."""
