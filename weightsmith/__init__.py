"""Locate, edit, prove."""
