"""Recipes: the schema, where values come from, and errors that say where a value stands."""
