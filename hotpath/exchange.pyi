"""One POST of an order in Granian, as a hand-written awaitable. Coroutines handle the rare requests."""

from collections.abc import Generator
from typing import Any

from hotpath.order_request import OrderCore, OrderRequest
from hotpath.sales import SaleView

class Exchange(OrderRequest):
    """Awaiting it answers the request. It never raises."""

    def __init__(self, core: OrderCore, scope: Any, protocol: Any, sale_id: str, sale: SaleView | None) -> None:
        """`sale` None: this worker does not know the sale, and valid headers lead to the slow path."""

    def __await__(self) -> Generator[Any, None, Any]: ...
