"""Requests no client should send, and what the fleet makes of them."""
