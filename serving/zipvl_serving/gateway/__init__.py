"""The OpenAI-compatible HTTP gateway; needs the extra `serve`."""
