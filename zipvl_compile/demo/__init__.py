"""The demo model: a small LLaVA trained here on scenes of handwritten digits."""
