"""What a task vector is made with: `operations` on one tensor, and the `walk` over two checkpoints."""
