"""From a recipe to a bundle: compile a vision-language model with ZipVL inside."""

__version__ = "0.1.0"
