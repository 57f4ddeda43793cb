"""Build of the compiled order path: one Extension per `.pyx`, each listed in the table below.

Needs a C compiler and Python's own headers, nothing else: a bare machine has no other headers.
"""

from __future__ import annotations

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

# Leaf modules first: a module below may `cimport` the ones above it.
EXTENSIONS = [
    "hotpath.counters",  # verdicts, counters by verdict, latency histogram
    "hotpath.ids",  # order ids, short ids, user hash, timestamps
    "hotpath.validation",  # order body and Idempotency-Key
    "hotpath.tokens",  # HS256 key ring
    "hotpath.sales",  # what the hot path knows of a sale
    "hotpath.rates",  # rates of users
    "hotpath.resp",  # RESP encoding and decoding
    "hotpath.tickets",  # one order on its way
    "hotpath.calls",  # script calls of a batch
    "hotpath.batcher",  # micro-batches
    "hotpath.lane_router",  # the node of a Redis Cluster for each order
    "hotpath.order_request",  # one POST of an order, whichever server read it
    "hotpath.exchange",  # one POST of an order in Granian
    "hotpath.answer_queue",  # the direct door: answers of a connection
    "hotpath.direct_order",  # the direct door: one POST of an order
    "hotpath.direct",  # the direct door: connections
    "perf.driver.loop",  # the bundled load driver
]

# A line trace costs more than the kernels themselves; on only when a profile by line is wanted.
COMPILE_ARGS = ["-O3", "-fno-plt", "-Wno-unused-function", "-Wno-unreachable-code"]
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "embedsignature": False,
    "freethreading_compatible": False,
}


def extension(name: str) -> Extension:
    """The Extension of one module."""
    return Extension(name, [name.replace(".", "/") + ".pyx"], extra_compile_args=COMPILE_ARGS)


setup(
    ext_modules=cythonize(
        [extension(name) for name in EXTENSIONS],
        compiler_directives=DIRECTIVES,
        nthreads=os.cpu_count() or 1,
        build_dir="build/cython",
    ),
)
