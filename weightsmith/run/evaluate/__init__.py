"""Trained classifiers side by side: `evaluate`, and every command that ends in it."""
