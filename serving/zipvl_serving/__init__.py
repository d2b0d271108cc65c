"""From a bundle to tokens: needs numpy and one engine runtime, never torch."""
