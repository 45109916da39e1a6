"""`weightsmith export`: an edited model leaves for other tools. `source` finds the model and its edit in a run folder,
`forms` write each form and read it back to compare it, `hub` pushes a folder, `command` is what the user calls.
"""

from weightsmith.run.export.command import export

__all__ = ["export"]
