"""Recipes: YAML to objects, objects to recipes, checkpoints to objects. The only room that knows omegaconf and dotted names."""

from .record import recipe_of, recorded

__all__ = ["recipe_of", "recorded"]
