"""Commands that this extra adds to `flashsale`, by entry points. A function is a command, its docstring the help."""
