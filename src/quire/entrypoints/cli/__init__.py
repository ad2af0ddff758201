"""The commands of `quire`.

A command is a `CommandLine` (which option classes it takes) and a `run` function; its flags, help, YAML keys and
reference page all come from the fields of those classes. `main.py` imports a command's module only when it runs, so
that `quire --help` loads neither torch nor fastapi. May import: every room but testing. Read first: `main.py`,
`flags.py`, `command_line.py`, `serve.py`.
"""
