"""Clients that note when tokens come: one per protocol."""
