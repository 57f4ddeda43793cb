"""Sales: from draft to end, their stock, and what happens in them."""
