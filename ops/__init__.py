"""The `flashsale` command and its operations, for any deployment. Does not import `devstack` or `faults`."""
