"""One module per command of `flashsale`."""
