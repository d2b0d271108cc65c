"""Capacity on paper, before any build: what fits a device, and how quick it must be."""
