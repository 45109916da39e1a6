"""The corrections of an image classifier: `run` with its stages, `baseline`, and the stream of corrections that others fill."""
