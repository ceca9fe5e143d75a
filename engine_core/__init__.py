"""One process per engine: token ids in, token ids out. Never imports HTTP packages."""
