"""Editing methods side by side: `compare`, and the benches and draws that ablations measure on, too."""
