"""The architectures: everything about each that transformers and the module tree do not say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from skim_runtime.errors import UserError

__all__ = ["DECLARATIONS", "Declaration", "declaration_of"]

CAUSAL = "ForCausalLM"  # how all their names end
LINEAR_ATTENTION_GATES = ("linear_attn.in_proj_a", "linear_attn.in_proj_b")
SHARED_GATE = "shared_expert_gate"


@dataclass(frozen=True)
class Declaration:
    """One architecture.

    Attributes:
        graph: the class that writes its graph: of onnxruntime-genai's model builder, or of `graph.decoders`.
        genai_type: the type that onnxruntime-genai runs it as, where that isn't the model class's own name.
        floats: modules of a block, by the end of their path, that stay float: small, and not worth a product on codes.
        router: what the shares of experts come from: a softmax over all, one over those that are chosen, or a sigmoid
            of each; None if there are no mixtures.
    """

    graph: str
    genai_type: str | None = None
    floats: tuple[str, ...] = ()
    router: Literal["softmax", "softmax of chosen", "sigmoid"] | None = None

    def keeps_float(self, module: str) -> bool:
        """Whether a linear layer of a block is one of `floats`."""
        return any(f".{module}".endswith(f".{end}") for end in self.floats)


DECLARATIONS = {
    "LlamaForCausalLM": Declaration("LlamaModel"),
    "MistralForCausalLM": Declaration("MistralModel"),
    "Ministral3ForCausalLM": Declaration("Ministral3", genai_type="mistral3_text"),
    "Qwen2ForCausalLM": Declaration("QwenModel"),
    "Qwen3ForCausalLM": Declaration("Qwen3Model"),
    "Qwen2MoeForCausalLM": Declaration("QwenModel", genai_type="qwen2", floats=(SHARED_GATE,), router="softmax"),
    "Qwen3MoeForCausalLM": Declaration("Qwen3Model", genai_type="qwen3", router="softmax"),
    "MixtralForCausalLM": Declaration("MistralModel", genai_type="mistral", router="softmax"),
    "OlmoeForCausalLM": Declaration("Olmoe", genai_type="olmo", router="softmax"),
    "GptOssForCausalLM": Declaration("GPTOSSModel", router="softmax of chosen"),
    "GemmaForCausalLM": Declaration("GemmaModel"),
    "Gemma2ForCausalLM": Declaration("Gemma2Model"),
    "Gemma3ForCausalLM": Declaration("Gemma3Model", genai_type="gemma3_text"),
    "Gemma4ForCausalLM": Declaration("Gemma4", genai_type="gemma4_text"),
    "Gemma4UnifiedForCausalLM": Declaration("Gemma4", genai_type="gemma4_text"),
    "Phi3ForCausalLM": Declaration("Phi3MiniModel"),
    "SmolLM3ForCausalLM": Declaration("LlamaModel"),
    "GraniteForCausalLM": Declaration("GraniteModel"),
    "GraniteMoeForCausalLM": Declaration("GraniteMoe", genai_type="granite", router="softmax of chosen"),
    "Olmo2ForCausalLM": Declaration("Olmo2", genai_type="olmo"),
    "Olmo3ForCausalLM": Declaration("Olmo2", genai_type="olmo"),
    "Ernie4_5ForCausalLM": Declaration("ErnieModel"),
    "HunYuanDenseV1ForCausalLM": Declaration("HunyuanDenseV1Model"),
    "Lfm2ForCausalLM": Declaration("LFM2Model"),
    "Lfm2MoeForCausalLM": Declaration("LFM2MoEModel", genai_type="lfm2", router="sigmoid"),
    "SeedOssForCausalLM": Declaration("LlamaModel", genai_type="llama"),
    "CwmForCausalLM": Declaration("LlamaModel", genai_type="llama"),
    "Qwen3_5ForCausalLM": Declaration("Qwen35Text", genai_type="qwen3_5_text", floats=LINEAR_ATTENTION_GATES),
    "Qwen3_5MoeForCausalLM": Declaration(
        "Qwen35Text", genai_type="qwen3_5_text", floats=(*LINEAR_ATTENTION_GATES, SHARED_GATE), router="softmax"
    ),
}


def declaration_of(architecture: str) -> Declaration:
    """What is to be said about an architecture, e.g. "LlamaForCausalLM".

    Raises:
        UserError: it is not supported.
    """
    if architecture not in DECLARATIONS:
        supported = ", ".join(sorted(name.removesuffix(CAUSAL) for name in DECLARATIONS))
        raise UserError(f"architecture {architecture} is not supported; supported, each with {CAUSAL}: {supported}")
    return DECLARATIONS[architecture]
