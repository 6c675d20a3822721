"""RMS norms where the model builder has none."""

from __future__ import annotations

from typing import Any

__all__ = ["make_rms_norm"]


def make_rms_norm(builder: Any, name: str, root_input: str, norm: Any, weight: str, shape: list[int | str]) -> str:
    """Make the node of a norm over the last axis, and return the name of its output.

    Args:
        builder: the model of the builder that is being made.
        name: of the node.
        root_input: what is normed.
        norm: the module of transformers.
        weight: what its weight is to be called.
        shape: of the output.
    """
    output = f"{name}/output_0"
    builder.make_initializer(norm.weight, weight, to=builder.io_dtype)
    builder.make_node(
        "SimplifiedLayerNormalization",
        inputs=[root_input, weight],
        outputs=[output],
        name=name,
        epsilon=builder.layernorm_attrs["epsilon"],
        axis=-1,
        stash_type=1,
    )
    builder.make_value(output, builder.io_dtype, shape=shape)
    return output
