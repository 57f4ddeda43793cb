"""Admission: accepts connections, reads requests within bounds, and forwards them to Robyn on a private port.

Robyn 0.88 reads a body without bound or deadline before our code runs, aborts the whole process when a body ends early
(`expect` under `panic = "abort"`), and answers unknown paths and methods without a body. So Robyn receives only
requests that were read here, complete and within the bounds. h11 does the framing (RFC 9112).

    listener    accepts connections, counts them, drains
    connection  one client: its requests one after the other, its stream
    wire        reads and writes HTTP on one client's connection, within the bounds
    robyn_link  one connection to Robyn

Knows no subjects, tokens or JSON.
"""
