"""Anthropic's Messages API, mapped on chats: its conversations, its answers, its errors."""
