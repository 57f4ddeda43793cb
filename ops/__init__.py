"""The `flashsale` command and the operations behind it, for any deployment."""
