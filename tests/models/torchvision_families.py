"""Families of torchvision: their own classes at a small size, built from configuration without weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models import segmentation
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.googlenet import BasicConv2d, Inception, InceptionAux
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
from torchvision.models.video import MViT, VideoResNet, mvit, resnet

from tests.models.family import CLASSES, family
from tests.zoo import Architecture, Batch, BatchMaker, Loss, cross_entropy, images

FAMILIES: dict[str, Architecture] = {}


def add(
    name: str, factory: Callable[[], nn.Module], *shape: int, loss: Loss = cross_entropy, make_batch: BatchMaker | None = None
) -> None:
    """Add a family that is given images of this shape."""
    FAMILIES[name] = family(name, factory, make_batch or images(*shape, classes=CLASSES), loss)


def segmentation_batch(n: int, generator: torch.Generator) -> Batch:
    """Images with a class for every pixel."""
    return Batch((torch.randn(n, 3, 32, 32, generator=generator),), torch.randint(CLASSES, (n, 32, 32), generator=generator))


def segmentation_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of every pixel, and that of the auxiliary head."""
    outputs = model(*batch.inputs)
    return F.cross_entropy(outputs["out"], batch.targets) + 0.5 * F.cross_entropy(outputs["aux"], batch.targets)


def loss_with_auxiliaries(model: nn.Module, batch: Batch) -> Tensor:
    """In train mode the classifiers half-way count, too."""
    outputs = model(*batch.inputs)
    if isinstance(outputs, Tensor):
        return F.cross_entropy(outputs, batch.targets)
    return sum((0.3 if number else 1.0) * F.cross_entropy(output, batch.targets) for number, output in enumerate(outputs))


def backbone() -> nn.Module:
    """The first half of a small residual net."""
    net = models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1])
    return IntermediateLayerGetter(net, {"layer2": "out", "layer1": "aux"})


def shortened(net: models.ResNet, width: int) -> nn.Module:
    """Return a residual net without its last two stages, which hold most of the parameters."""
    net.layer3, net.layer4, net.fc = nn.Identity(), nn.Identity(), nn.Linear(width, CLASSES)
    return net


def residual() -> nn.Module:
    return shortened(models.ResNet(models.resnet.BasicBlock, [2, 2, 1, 1]), 128)


def resnext() -> nn.Module:
    return shortened(models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], groups=8, width_per_group=2), 512)


def densenet() -> nn.Module:
    return models.DenseNet(growth_rate=6, block_config=(2, 3), num_init_features=12, bn_size=2, num_classes=CLASSES)


def memory_efficient_densenet() -> nn.Module:
    return models.DenseNet(6, (2, 2), 12, bn_size=2, num_classes=CLASSES, memory_efficient=True)


def mobilenet_v2() -> nn.Module:
    setting = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]
    return models.MobileNetV2(CLASSES, width_mult=0.5, inverted_residual_setting=setting, dropout=0.0)


def mobilenet_v3() -> nn.Module:
    setting = [
        InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 0.5),
        InvertedResidualConfig(16, 5, 32, 24, True, "HS", 2, 1, 0.5),
        InvertedResidualConfig(24, 5, 48, 24, True, "HS", 1, 1, 0.5),
    ]
    return models.MobileNetV3(setting, 64, num_classes=CLASSES, dropout=0.0)


def efficientnet() -> nn.Module:
    setting = [MBConvConfig(1, 3, 1, 16, 8, 1), MBConvConfig(4, 3, 2, 8, 12, 2), MBConvConfig(4, 5, 2, 12, 16, 1)]
    return models.EfficientNet(setting, dropout=0.0, stochastic_depth_prob=0.0, num_classes=CLASSES)


def efficientnet_v2() -> nn.Module:
    setting = [FusedMBConvConfig(1, 3, 1, 8, 8, 1), FusedMBConvConfig(4, 3, 2, 8, 16, 1), MBConvConfig(4, 3, 2, 16, 16, 1)]
    return models.EfficientNet(setting, dropout=0.0, stochastic_depth_prob=0.0, num_classes=CLASSES, last_channel=32)


def convnext() -> nn.Module:
    return models.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, 24, 1), CNBlockConfig(24, None, 1)], num_classes=CLASSES)


def vision_transformer() -> nn.Module:
    return models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=CLASSES)


def swin() -> nn.Module:
    return models.SwinTransformer([4, 4], 8, [2, 2], [2, 4], [4, 4], num_classes=CLASSES, stochastic_depth_prob=0.0)


def swin_v2() -> nn.Module:
    return models.SwinTransformer(
        [4, 4], 8, [2, 2], [2, 4], [4, 4], stochastic_depth_prob=0.0, num_classes=CLASSES, block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )  # fmt: skip


def maxvit() -> nn.Module:
    return models.MaxVit((32, 32), 8, 2, [8, 16], [1, 1], 8, 0.0, num_classes=CLASSES)


def regnet() -> nn.Module:
    parameters = BlockParams([1, 1], [16, 32], [8, 8], [1.0, 1.0], [2, 2], 0.25)
    return models.RegNet(parameters, num_classes=CLASSES, stem_width=8)


def shufflenet() -> nn.Module:
    return models.ShuffleNetV2([2, 2, 2], [8, 16, 24, 32, 48], num_classes=CLASSES)


def mnasnet() -> nn.Module:
    return models.MNASNet(0.1, num_classes=CLASSES, dropout=0.0)


class Narrow(Inception):
    """An eighth of the channels."""

    def __init__(self, *channels: int) -> None:
        super().__init__(*(channel // 8 for channel in channels))


class NarrowConvolution(BasicConv2d):
    """An eighth of the channels, except of the image."""

    def __init__(self, inputs: int, outputs: int, **options: Any) -> None:
        super().__init__(inputs if inputs == 3 else inputs // 8, outputs // 8, **options)


class NarrowAuxiliary(InceptionAux):
    """A classifier half-way with fewer units."""

    def __init__(self, inputs: int, classes: int, dropout: float) -> None:
        super().__init__(inputs // 8, classes, dropout=dropout)
        self.conv = BasicConv2d(inputs // 8, 8, kernel_size=1)
        self.fc1, self.fc2 = nn.Linear(128, 16), nn.Linear(16, classes)


def inception() -> nn.Module:
    blocks = [NarrowConvolution, Narrow, NarrowAuxiliary]
    net = models.GoogLeNet(CLASSES, True, init_weights=False, blocks=blocks, dropout=0.0, dropout_aux=0.0)
    net.fc = nn.Linear(128, CLASSES)
    return net


def vgg() -> nn.Module:
    net = models.VGG(models.vgg.make_layers([8, "M", 16, "M", 24, "M"], batch_norm=True), CLASSES, init_weights=False)
    net.avgpool = nn.AdaptiveAvgPool2d(2)
    net.classifier = nn.Sequential(nn.Linear(96, 32), nn.ReLU(True), nn.Linear(32, CLASSES))
    return net


def fcn() -> nn.Module:
    return segmentation.FCN(backbone(), FCNHead(128, CLASSES), FCNHead(64, CLASSES))


def deeplab() -> nn.Module:
    return segmentation.DeepLabV3(backbone(), DeepLabHead(128, CLASSES, (1, 2)), FCNHead(64, CLASSES))


def video_resnet() -> nn.Module:
    convolutions = [resnet.Conv2Plus1D, resnet.Conv3DSimple, resnet.Conv3DNoTemporal, resnet.Conv3DNoTemporal]
    net = VideoResNet(resnet.BasicBlock, convolutions, [1, 1, 1, 1], resnet.BasicStem)
    net.layer3, net.layer4, net.fc = nn.Identity(), nn.Identity(), nn.Linear(128, CLASSES)
    return net


def multiscale_vision_transformer() -> nn.Module:
    setting = [
        mvit.MSBlockConfig(1, 8, 8, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        mvit.MSBlockConfig(2, 8, 16, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
    ]
    options: dict[str, Any] = {"residual_pool": True, "residual_with_cls_embed": False, "rel_pos_embed": True}
    return MViT(
        (32, 32), 4, setting, num_classes=CLASSES, proj_after_attn=True, attention_dropout=0.0, stochastic_depth_prob=0.0,
        **options,
    )  # fmt: skip


add("torchvision_resnet", residual, 3, 32, 32)
add("torchvision_resnext", resnext, 3, 32, 32)
add("torchvision_densenet", densenet, 3, 32, 32)
add("torchvision_densenet_checkpointed", memory_efficient_densenet, 3, 32, 32)
add("torchvision_mobilenet_v2", mobilenet_v2, 3, 32, 32)
add("torchvision_mobilenet_v3", mobilenet_v3, 3, 32, 32)
add("torchvision_efficientnet", efficientnet, 3, 32, 32)
add("torchvision_efficientnet_v2", efficientnet_v2, 3, 32, 32)
add("torchvision_convnext", convnext, 3, 32, 32)
add("torchvision_vision_transformer", vision_transformer, 3, 32, 32)
add("torchvision_swin", swin, 3, 32, 32)
add("torchvision_swin_v2", swin_v2, 3, 32, 32)
add("torchvision_maxvit", maxvit, 3, 32, 32)
add("torchvision_regnet", regnet, 3, 32, 32)
add("torchvision_shufflenet", shufflenet, 3, 32, 32)
add("torchvision_squeezenet", partial(models.SqueezeNet, "1_1", CLASSES, 0.0), 3, 32, 32)
add("torchvision_mnasnet", mnasnet, 3, 64, 64)
add("torchvision_googlenet", inception, 3, 48, 48, loss=loss_with_auxiliaries)
add("torchvision_vgg", vgg, 3, 16, 16)
add("torchvision_fcn", fcn, loss=segmentation_loss, make_batch=segmentation_batch)
add("torchvision_deeplab", deeplab, loss=segmentation_loss, make_batch=segmentation_batch)
add("torchvision_video_resnet", video_resnet, 3, 4, 16, 16)
add("torchvision_mvit", multiscale_vision_transformer, 3, 4, 32, 32)
