"""`weightsmith artificial`: task arithmetic on two artificial tables, or on any pair of image classifiers.

`command` is the run, `data` its tables, `networks` the base and the fine-tuned network, `sweep` what the operations do.
"""
