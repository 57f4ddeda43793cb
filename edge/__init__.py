"""The edge: takes orders in one round trip to Redis. Granian RSGI serves HTTP, compiled kernels process the orders."""
