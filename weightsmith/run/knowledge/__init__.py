"""Facts of language models: `facts` and `edit`, one batch or a stream of them."""
