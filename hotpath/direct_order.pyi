"""One POST of an order at the direct door."""

from hotpath.order_request import OrderRequest

class DirectOrder(OrderRequest):
    """Made by a connection, with a whole body."""

    def give_up(self, error: BaseException) -> None:
        """Handle an internal error: a typed answer for the client, the traceback for the log."""
