"""Recipes: one TOML file a model that has a short name (read by `skim_export.checkpoint.recipes`)."""
