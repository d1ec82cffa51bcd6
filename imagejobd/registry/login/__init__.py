"""Logging in: what a registry asks for, tokens and who gives them, and the header that each request then carries."""
