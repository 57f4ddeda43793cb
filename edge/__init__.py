"""The edge: takes orders in one round trip to Redis. Granian RSGI in front, compiled kernels inside."""
