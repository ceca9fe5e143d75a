"""Attention over paged KV blocks: one protocol, one file per backend."""
