"""Operations of the `flashsale` command, a module per subject. A function is a command, its docstring the help."""
