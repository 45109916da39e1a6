"""One choice of an editor varied: `ablate lora` and `ablate replay`."""
