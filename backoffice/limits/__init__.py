"""Rate limits of attempts, counted in the cache Redis for all processes."""
