"""Model families: how a Hugging Face architecture becomes a decoder and a vision tower."""
