"""The embedded stack's simulated payment provider: a process with a page, an API, webhooks and a ledger of its own.

For tests and demonstrations: no money moves. It knows nothing of the shop but its webhook address, and shares no data
with it, so that both ledgers can be compared. `payments.providers.simulated` describes the API.

    behaviour.py    delays, failures, duplicates, late and lost webhooks; seeded, settable at run time
    books.py        checkouts, ledger and webhooks to deliver, in SQLite: kill -9 loses nothing
    paying.py       from a buyer's click to captures and their webhooks
    delivering.py   webhooks, repeated until the shop answers 2xx
    api.py          the shop's calls, and the control of the behaviour
    page.py         the page on which a buyer pays
"""
