"""Notices become e-mail: taken off their queue, written, handed to a mail server by SMTP, acknowledged.

What a crash leaves behind, step by step:

    the notice's record claimed, nothing else   the same secret is found again and used
    the token's hash stored                     as above: the same hash is stored again
    the server took the mail, not recorded      the mail goes out a second time, the same to the byte but for its date: same
                                                Message-ID, same token. SMTP knows no better: at least once
    recorded as sent, not acknowledged          the notice comes again, is known, and is acknowledged
"""
