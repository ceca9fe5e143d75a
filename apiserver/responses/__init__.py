"""OpenAI's Responses API, mapped on chats: its items, its stored answers, its events."""
