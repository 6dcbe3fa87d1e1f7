"""Samples to learn from and to be measured on: one reader for each format, and the built-in demo world."""
