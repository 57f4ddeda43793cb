"""The bundled load driver: orders of many users over HTTP/1.1, from one process that is no bottleneck.

wrk reports only rates. This driver records the id of every 202, repeats unanswered orders with the same key as a client
should, and counts each problem code. Closed loop: a connection sends its next order after an answer, so latencies are
those of buyers that wait. Open loop, with a rate: orders are due by the clock and latencies count from then, so a slow
answer also shows in the latencies of the orders behind it.
"""
