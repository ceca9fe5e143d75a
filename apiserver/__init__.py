"""One HTTP worker process per core: text in, text out. Never imports torch."""
