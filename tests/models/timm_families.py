"""Families of timm: their own classes at a small size, built from configuration without weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
from timm.models import byobnet, convmixer, focalnet, ghostnet, maxxvit, metaformer, mlp_mixer, nfnet
from torch import nn

from tests.models.family import CLASSES, family
from tests.zoo import Architecture, Batch, images

FAMILIES: dict[str, Architecture] = {}


def add(name: str, model: str | Callable[..., nn.Module], *configuration: Any, size: int = 32, **options: Any) -> None:
    """Add a family: the name of a model of timm that options make small, or its class where the name fixes the sizes."""
    factory = partial(timm.create_model, model) if isinstance(model, str) else partial(model, *configuration)
    points = {"slice_sample": twice} if name == "cross_covariance" else {}
    make = partial(factory, num_classes=CLASSES, **options)
    FAMILIES[f"timm_{name}"] = family(f"timm_{name}", make, images(3, size, size, classes=CLASSES), **points)


def twice(batch: Batch, i: int) -> Batch:
    """Return a batch that holds sample ``i`` two times.

    In the backward pass of a batch normalisation in eval mode PyTorch 2.15 sums over the wrong axis, on the CPU, if the batch
    holds one sample and the gradient comes in another memory order.
    """
    return Batch(tuple(x[[i, i]] for x in batch.inputs), batch.targets[[i, i]])


transformer: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}

add("resnet_v2", "resnetv2_50", layers=(1, 1), channels=(16, 32), stem_chs=8)
add("resnet_d", "resnet18d", channels=(8, 16, 24, 32), stem_width=4, layers=(1, 1, 1, 1))
add("se_resnet", "seresnet18", channels=(8, 16, 24, 32), layers=(1, 1, 1, 1))
add("vision_transformer", "vit_tiny_patch16_224", **transformer)
add("vision_transformer_scaled", "vit_tiny_patch16_224", **transformer, init_values=0.1, qk_norm=True, global_pool="map")
add("deit_distilled", "deit_tiny_distilled_patch16_224", **transformer)
add("beit", "beit_base_patch16_224", **transformer)
add("eva", "eva02_tiny_patch14_224", **transformer)
add("cait", "cait_xxs24_224", **transformer)
add("convnext_v2", "convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
patches: dict[str, Any] = {"img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 16}
add("mixer", mlp_mixer.MlpMixer, **patches)
add("res_mlp", mlp_mixer.MlpMixer, **patches, mlp_ratio=4, block_layer=mlp_mixer.ResBlock, norm_layer=mlp_mixer.Affine)
add(
    "gated_mlp",
    mlp_mixer.MlpMixer,
    **patches,
    mlp_ratio=2,
    block_layer=mlp_mixer.SpatialGatingBlock,
    mlp_layer=mlp_mixer.GatedMlp,
)
add("conv_mixer", convmixer.ConvMixer, dim=16, depth=2, kernel_size=3, patch_size=4)
add(
    "norm_free_net",
    nfnet.NormFreeNet,
    nfnet.NfCfg((1, 1, 1, 1), (8, 16, 24, 32), stem_chs=8, attn_layer="se", attn_kwargs={}, skipinit=True),
)
add("pool_former", metaformer.MetaFormer, depths=(1, 1), dims=(8, 16), layer_scale_init_values=0.1, use_mlp_head=False)
add("swin", "swin_tiny_patch4_window7_224", img_size=32, embed_dim=8, depths=(2, 2), num_heads=(2, 4), window_size=4)
add("swin_v2", "swinv2_tiny_window8_256", img_size=32, embed_dim=8, depths=(2, 2), num_heads=(2, 4), window_size=4)
add("pyramid_vision_transformer", "pvt_v2_b0", depths=(1, 1, 1, 1), embed_dims=(8, 8, 16, 16), num_heads=(1, 1, 2, 2))
add("cross_covariance", "xcit_nano_12_p8_224", img_size=32, embed_dim=16, depth=2, num_heads=2)
window = maxxvit.MaxxVitTransformerCfg(dim_head=8, window_size=(4, 4))
add(
    "max_vit", maxxvit.MaxxVit, maxxvit.MaxxVitCfg((8, 16), (1, 1), ("M", "M"), stem_width=8, transformer_cfg=window),
    img_size=32,
)  # fmt: skip
add("ghost_net", ghostnet.GhostNet, cfgs=[[[3, 16, 16, 0, 1]], [[3, 24, 16, 0.25, 2]], [[5, 32, 24, 0, 2]]])
blocks = tuple(byobnet.ByoBlockCfg("rep", d=1, c=channels, s=2) for channels in (8, 16))
add("rep_vgg", byobnet.ByobNet, byobnet.ByoModelCfg(blocks, stem_type="rep", stem_chs=8))
add("focal_net", focalnet.FocalNet, depths=(1, 1), embed_dim=8, focal_levels=(2, 2), focal_windows=(3, 3), layerscale_value=0.1)
add("sequencer", "sequencer2d_s", img_size=32, layers=(1, 1, 1, 1), embed_dims=(16, 16, 24, 24), hidden_sizes=(4, 4, 6, 6))
add(
    "edge_next",
    "edgenext_xx_small",
    depths=(1, 1, 1, 1),
    dims=(8, 16, 16, 16),
    heads=(2, 2, 2, 2),
    global_block_counts=(0, 1, 1, 1),
)
add("visformer", "visformer_tiny", img_size=32, init_channels=8, embed_dim=32, depth=(1, 1, 1), num_heads=2)
add("twins", "twins_svt_small", img_size=32, embed_dims=(8, 8, 16, 16), num_heads=(1, 1, 2, 2), depths=(1, 1, 1, 2))
add("dual_attention", "davit_tiny", depths=(1, 1, 1, 1), embed_dims=(8, 8, 16, 16), num_heads=(1, 1, 2, 2), window_size=4)
