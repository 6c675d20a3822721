"""From a model's name to its tensors: recipes, checkpoints read tensor by tensor, architectures, and models."""

from .architecture import Architecture, architecture_of
from .checkpoint import Checkpoint
from .declarations import DECLARATIONS
from .experts import CLAMPED_ALPHA, CLAMPED_LIMIT, EXPERT_PARTS
from .linear import Linear, Member, linear_bias, linear_weight
from .model import Model
from .recipes import Recipe, default_bits, load_recipes, resolve
from .shapes import ShapesOnly
from .skeleton import forget_parameters, load_parameters, rotary_embedding, skeleton

__all__ = [
    "CLAMPED_ALPHA",
    "CLAMPED_LIMIT",
    "DECLARATIONS",
    "EXPERT_PARTS",
    "Architecture",
    "Checkpoint",
    "Linear",
    "Member",
    "Model",
    "Recipe",
    "ShapesOnly",
    "architecture_of",
    "default_bits",
    "forget_parameters",
    "linear_bias",
    "linear_weight",
    "load_parameters",
    "load_recipes",
    "resolve",
    "rotary_embedding",
    "skeleton",
]
