"""Rival servers: one file says how one of them is started; the others measure side by side."""
