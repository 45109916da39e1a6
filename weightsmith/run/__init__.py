"""Whole jobs: options, the run folder, the stages of a correction, the baseline training.

A command is a function of one dataclass of options; a YAML file holds the same dataclass. Stages leave their results in the
run folder as files and take what earlier stages left there, so each also runs alone.
"""
