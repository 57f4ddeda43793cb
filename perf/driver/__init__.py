"""The bundled load driver: orders of many users over HTTP/1.1, from one process that is no bottleneck.

wrk reports rates and nothing else; this one keeps the id of every 202, repeats what it has no answer to with the same
key, as a client should, and tells problem codes apart. Closed loop: a connection sends when it has its answer, so
latencies are those of a crowd that waits. Open loop, with a rate: orders are due by the clock, and latencies count from
when an order was due, so that a slow answer makes those behind it look as slow as they are.
"""
