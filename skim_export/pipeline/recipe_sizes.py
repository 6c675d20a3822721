"""What an export of each recipe takes, from the recipe's shapes: nothing is downloaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skim_export.checkpoint import DECLARATIONS, Model, Recipe, ShapesOnly, load_recipes
from skim_export.pipeline.cost import Sizes, estimate_sizes
from skim_export.pipeline.job import Job
from skim_export.pipeline.options import ExportOptions
from skim_export.work.resources import Resources
from skim_export.work.tasks import SerialExecutor

__all__ = ["RecipeSizes", "recipe_sizes"]


@dataclass(frozen=True)
class RecipeSizes:
    """A recipe and what its export takes with all defaults.

    Attributes:
        recipe: the recipe.
        parameters: number of values in the tensors that are exported.
        sizes: memory and disk; None if its architecture is not supported.
    """

    recipe: Recipe
    parameters: int
    sizes: Sizes | None

    def as_json(self) -> dict[str, Any]:
        """The same as plain data, sizes in bytes."""
        recipe = self.recipe
        return {
            "alias": recipe.alias,
            "title": recipe.title,
            "architecture": recipe.architecture,
            "parameters": self.parameters,
            "licence": recipe.licence,
            "gated": recipe.gated,
            "bits": recipe.bits,
            "sizes": None if self.sizes is None else asdict(self.sizes),
        }


def recipe_sizes() -> list[RecipeSizes]:
    """All recipes, in the order of their aliases, with what their exports take on this machine."""
    return [_sized(recipe) for recipe in load_recipes().values()]


def _sized(recipe: Recipe) -> RecipeSizes:
    if recipe.architecture not in DECLARATIONS:
        return RecipeSizes(recipe, ShapesOnly(recipe.alias, recipe.config).parameter_count, None)
    model, options = Model.of_shapes(recipe), ExportOptions(bits=recipe.bits)
    resources = Resources.of(options.threads, None)
    job = Job.of(recipe.alias, Path("model.onnx"), options, model, resources, SerialExecutor(resources))
    return RecipeSizes(recipe, model.checkpoint.parameter_count, estimate_sizes(job))
