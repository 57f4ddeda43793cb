"""Analytics: counts the events of orders and payments per second and per minute of each sale.

Figures and the positions in the event log change in one transaction of the analytics database, so each record has its
effect once. An event that is in the log twice counts once: `counted` has a row for each event. The result of a crash
after each step:

    read, not committed      the figures and the positions are as before; the records are read again
    committed                the records are done; the positions say so
    commit unknown           the positions in the database decide; the batch is applied again or not

Refusals are not events. Edges count them in Redis; `refusals.py` takes samples of these counts.
"""
