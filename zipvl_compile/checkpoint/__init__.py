"""Hugging Face checkpoints, read tensor by tensor."""
