"""The receiver of webhooks that drills use: which requests are messages."""

import socket

from faults.receiver import receiving


def test_a_message_cut_off_by_the_end_of_its_sender_is_not_forged() -> None:
    """A worker that is killed while it sends leaves the beginning of a message."""
    head = b"POST /hook HTTP/1.1\r\nHost: x\r\nWebhook-Id: m\r\nWebhook-Timestamp: 1\r\nWebhook-Signature: v1,x\r\n"
    with receiving() as receiver:
        for body, forged in ((b"{", 0), (b"{}", 1)):
            with socket.create_connection(("127.0.0.1", receiver.port), timeout=10) as sender:
                sender.sendall(head + b"Content-Length: 2\r\n\r\n" + body)
                sender.shutdown(socket.SHUT_WR)
                while sender.recv(1024):
                    pass
            assert receiver.forged == forged
