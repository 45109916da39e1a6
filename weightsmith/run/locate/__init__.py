"""Where a model decides: `locate trace`, `patch`, `attribution` and `astra`."""
