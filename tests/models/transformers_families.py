"""Families of transformers: their own classes at a small size, built from configuration without weights.

Most return their own loss, as users train them; padding masks and encoders beside decoders are there, too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from tests.models.family import CLASSES, family
from tests.zoo import Architecture, Batch, BatchMaker, Loss

LENGTH = 7
VOCABULARY = 29
FAMILIES: dict[str, Architecture] = {}

#: What most configurations call their sizes.
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def without(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return the options but those."""
    return {name: value for name, value in options.items() if name not in names}


def add(name: str, model: str, config: str, make_batch: BatchMaker, loss: Loss, **options: Any) -> None:
    """Add a family by the names of its classes in transformers."""

    def factory() -> nn.Module:
        return getattr(transformers, model)(getattr(transformers, config)(**options))

    FAMILIES[f"transformers_{name}"] = family(f"transformers_{name}", factory, make_batch, loss)


def sentences(n: int, generator: torch.Generator) -> Batch:
    """Tokens, a padding mask and a class each."""
    tokens = torch.randint(3, VOCABULARY, (n, LENGTH), generator=generator)
    lengths = torch.randint(3, LENGTH + 1, (n, 1), generator=generator)
    mask = (torch.arange(LENGTH) < lengths).long()
    return Batch((tokens * mask, mask), torch.randint(CLASSES, (n,), generator=generator))


def texts(n: int, generator: torch.Generator) -> Batch:
    """Tokens that are their own targets."""
    tokens = torch.randint(3, VOCABULARY, (n, LENGTH), generator=generator)
    return Batch((tokens,), tokens)


def pairs(n: int, generator: torch.Generator) -> Batch:
    """Tokens of a source with its padding mask, and tokens of a target."""
    (tokens, mask), _ = sentences(n, generator)
    return Batch((tokens, mask), torch.randint(3, VOCABULARY, (n, 6), generator=generator))


def pictures(n: int, generator: torch.Generator) -> Batch:
    """Images with a class each."""
    return Batch((torch.randn(n, 3, 32, 32, generator=generator),), torch.randint(CLASSES, (n,), generator=generator))


def sounds(n: int, generator: torch.Generator) -> Batch:
    """Waves with a class each."""
    return Batch((torch.randn(n, 400, generator=generator),), torch.randint(CLASSES, (n,), generator=generator))


def spectrograms(n: int, generator: torch.Generator) -> Batch:
    """Spectrograms with a transcription each."""
    return Batch((torch.randn(n, 8, 20, generator=generator),), torch.randint(3, VOCABULARY, (n, LENGTH), generator=generator))


def captions(n: int, generator: torch.Generator) -> Batch:
    """Images and the texts that belong to them."""
    (tokens, mask), _ = sentences(n, generator)
    tokens[:, -1] = VOCABULARY - 1
    return Batch((tokens, mask, torch.randn(n, 3, 32, 32, generator=generator)), torch.arange(n))


def masked_classes(model: nn.Module, batch: Batch) -> Tensor:
    """The model's own classification loss."""
    return model(input_ids=batch.inputs[0], attention_mask=batch.inputs[1], labels=batch.targets).loss


def language(model: nn.Module, batch: Batch) -> Tensor:
    """The model's own loss of every next token."""
    return model(input_ids=batch.inputs[0], labels=batch.targets).loss


def external_language(model: nn.Module, batch: Batch) -> Tensor:
    """The same outside of the model, of its logits."""
    logits = model(batch.inputs[0]).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.targets[:, 1:].flatten())


def translation(model: nn.Module, batch: Batch) -> Tensor:
    """The model's own loss of the target given the source."""
    return model(input_ids=batch.inputs[0], attention_mask=batch.inputs[1], labels=batch.targets).loss


def image_classes(model: nn.Module, batch: Batch) -> Tensor:
    """The model's own classification loss."""
    return model(pixel_values=batch.inputs[0], labels=batch.targets).loss


def sound_classes(model: nn.Module, batch: Batch) -> Tensor:
    """The model's own classification loss."""
    return model(input_values=batch.inputs[0], labels=batch.targets).loss


def transcription(model: nn.Module, batch: Batch) -> Tensor:
    """The model's own loss of the text given the spectrogram."""
    return model(input_features=batch.inputs[0], labels=batch.targets).loss


def squared_similarity(model: nn.Module, batch: Batch) -> Tensor:
    """Of every image and its own text; the usual loss compares all of the batch, and no sample has a loss of its own."""
    tokens, mask, images = batch.inputs
    outputs = model(input_ids=tokens, attention_mask=mask, pixel_values=images)
    return ((outputs.text_embeds * outputs.image_embeds).sum(1) - 2).square().mean()


encoder = {**SMALL, "num_labels": CLASSES}
decoder = {**SMALL, "num_key_value_heads": 1, "head_dim": 8}
gpt2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
t5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0,
}
bart = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": 2,
}
vision = {**without(SMALL, "vocab_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")}
vision |= {"image_size": 32, "patch_size": 8, "num_labels": CLASSES}
audio = {
    **without(SMALL, "max_position_embeddings"),
    "conv_dim": (8, 8),
    "conv_kernel": (6, 4),
    "conv_stride": (4, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
    "num_labels": CLASSES,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}

add("bert", "BertForSequenceClassification", "BertConfig", sentences, masked_classes, **encoder)
add("bert_masked_language", "BertForMaskedLM", "BertConfig", texts, language, **SMALL)
add("roberta", "RobertaForSequenceClassification", "RobertaConfig", sentences, masked_classes, **encoder)
add("electra", "ElectraForSequenceClassification", "ElectraConfig", sentences, masked_classes, **encoder, embedding_size=8)
add("albert", "AlbertForSequenceClassification", "AlbertConfig", sentences, masked_classes, **encoder, embedding_size=8)
add(
    "distilbert", "DistilBertForSequenceClassification", "DistilBertConfig", sentences, masked_classes,
    vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=16, num_labels=CLASSES,
)  # fmt: skip
add(
    "deberta", "DebertaV2ForSequenceClassification", "DebertaV2Config", sentences, masked_classes, **encoder,
    relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=4,
)  # fmt: skip
add("fnet", "FNetForSequenceClassification", "FNetConfig", sentences, lambda model, batch: model(
    input_ids=batch.inputs[0], labels=batch.targets).loss, **without(encoder, "num_attention_heads"))  # fmt: skip
add("gpt2", "GPT2LMHeadModel", "GPT2Config", texts, language, **gpt2)
add("gpt2_external_loss", "GPT2LMHeadModel", "GPT2Config", texts, external_language, **gpt2)
add("gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", texts, language, **SMALL)
add("opt", "OPTForCausalLM", "OPTConfig", texts, language, **without(SMALL, "intermediate_size"), ffn_dim=24,
    word_embed_proj_dim=16)  # fmt: skip
add("bloom", "BloomForCausalLM", "BloomConfig", texts, language, vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2)
add("falcon", "FalconForCausalLM", "FalconConfig", texts, language, **without(SMALL, "intermediate_size"))
add("llama", "LlamaForCausalLM", "LlamaConfig", texts, language, **decoder)
add("mistral", "MistralForCausalLM", "MistralConfig", texts, language, **decoder, sliding_window=3)
add("mixtral", "MixtralForCausalLM", "MixtralConfig", texts, language, **decoder, num_local_experts=3, num_experts_per_tok=2,
    experts_implementation="eager")  # fmt: skip
add("gemma", "GemmaForCausalLM", "GemmaConfig", texts, language, **decoder)
add("gemma_2", "Gemma2ForCausalLM", "Gemma2Config", texts, language, **decoder, sliding_window=3)
add("qwen_2", "Qwen2ForCausalLM", "Qwen2Config", texts, language, **without(decoder, "head_dim"))
add("qwen_3", "Qwen3ForCausalLM", "Qwen3Config", texts, language, **decoder)
add("phi", "PhiForCausalLM", "PhiConfig", texts, language, **SMALL)
add("mamba", "MambaForCausalLM", "MambaConfig", texts, language, vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2,
    state_size=4, use_mambapy=False)  # fmt: skip
add("t5", "T5ForConditionalGeneration", "T5Config", pairs, translation, **t5)
add("bart", "BartForConditionalGeneration", "BartConfig", pairs, translation, **bart)
add("vit", "ViTForImageClassification", "ViTConfig", pictures, image_classes, **vision)
add("beit", "BeitForImageClassification", "BeitConfig", pictures, image_classes, **vision, use_relative_position_bias=True,
    use_shared_relative_position_bias=False)  # fmt: skip
add("dino_v2", "Dinov2ForImageClassification", "Dinov2Config", pictures, image_classes,
    **without(vision, "intermediate_size"), mlp_ratio=2)  # fmt: skip
add(
    "segformer", "SegformerForImageClassification", "SegformerConfig", pictures, image_classes, depths=[1, 1, 1, 1],
    hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16, num_labels=CLASSES,
)  # fmt: skip
add("wav2vec_2", "Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", sounds, sound_classes, **audio)
add(
    "whisper", "WhisperForConditionalGeneration", "WhisperConfig", spectrograms, transcription, **bart,
    num_mel_bins=8, max_source_positions=10, max_target_positions=16, suppress_tokens=[], begin_suppress_tokens=[],
)  # fmt: skip
add(
    "clip", "CLIPModel", "CLIPConfig", captions, squared_similarity, projection_dim=8,
    text_config={**SMALL, "eos_token_id": VOCABULARY - 1, "projection_dim": 8},
    vision_config={**without(vision, "num_labels"), "projection_dim": 8},
)  # fmt: skip
