"""Starts real servers and the project's processes on a bare machine; home of the `flashsale` command."""
