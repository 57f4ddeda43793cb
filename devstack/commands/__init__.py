"""Commands of `flashsale`, a module per subject. Each function is one command; its docstring is the help text."""
