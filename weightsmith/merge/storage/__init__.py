"""Where tensors lie: files and networks as sources of bytes, kinds of numbers, and the writer of sharded folders."""
