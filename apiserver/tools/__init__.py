"""Calls of tools: what a request may ask for, and the forms in which models write them."""
