"""The options of every command, as dataclasses: a module a craft, each imported by the command that takes it.

Nothing heavy is imported here, so that `--help` answers at once.
"""
