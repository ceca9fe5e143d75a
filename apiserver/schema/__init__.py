"""The OpenAI wire schema as msgspec structs, and its translation into engine requests."""
