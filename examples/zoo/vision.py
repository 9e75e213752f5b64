"""Vision models of ``transformers`` and ``torchvision``, random; those of torchvision as they are, at small images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from examples.zoo.base import Entry, Output, numbers, tokens

HALF = (torch.float32, torch.float16)


def image(size: int = 64) -> tuple[Tensor, ...]:
    """One image, [1, 3, size, size]."""
    return (numbers(1, 3, size, size),)


def torchvision_model(name: str, **changes: Any) -> nn.Module:
    """A classifier with random weights whose running averages are not trivial."""
    import torchvision

    model: nn.Module = getattr(torchvision.models, name)(weights=None, **changes)
    return with_averages(model)


def with_averages(model: nn.Module) -> nn.Module:
    """Sets the running averages of batch norms to seeded numbers, so that leaving them out shows."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def fpn() -> nn.Module:
    """A ResNet with a feature pyramid: the backbone of Faster R-CNN."""
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    return with_averages(Named(resnet_fpn_backbone(backbone_name="resnet18", weights=None), "0"))


class Named(nn.Module):
    """A model that returns several tensors by name, of which one is wanted."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model = model
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, height, width] to the named tensor."""
        out: Tensor = self.model(x)[self.name]
        return out


def transformers_model(
    model: str, output: str | int = "last_hidden_state", suffix: str = "Model", **changes: Any
) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{model}Config")(**changes)
    return with_averages(Output(getattr(transformers, model + suffix)(config), ("pixel_values",), output))


def clip() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    text = {**sizes, "vocab_size": 512, "max_position_embeddings": 64, "eos_token_id": 511, "bos_token_id": 510}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
    return Output(CLIPModel(config), ("input_ids", "pixel_values"), "logits_per_image")


def detr() -> nn.Module:
    """The transformer detector over a small ResNet."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], out_features=["stage4"]
    )
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in _SIDE.items()}
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=64,
        num_queries=10,
        num_labels=7,
        **sizes,
    )
    return with_averages(Output(DetrForObjectDetection(config), ("pixel_values",), "logits"))


_SIZES: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
_SIDE = {"layers": 1, "attention_heads": 4, "ffn_dim": 128}
_SWIN: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 32,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}

ENTRIES = [
    Entry(
        "vit",
        "vision transformer",
        lambda: transformers_model("ViT", **_SIZES, image_size=64, patch_size=16),
        image,
        HALF,
    ),
    Entry(
        "dinov2",
        "vision transformer",
        lambda: transformers_model("Dinov2", **_SIZES, image_size=64, patch_size=16),
        image,
    ),
    Entry("swin", "vision transformer", lambda: transformers_model("Swin", **_SWIN), image, HALF),
    Entry("swinv2", "vision transformer", lambda: transformers_model("Swinv2", **_SWIN), image),
    Entry(
        "segformer",
        "segmentation",
        lambda: transformers_model(
            "Segformer",
            "logits",
            "ForSemanticSegmentation",
            depths=[1, 1, 1, 1],
            hidden_sizes=[16, 32, 48, 64],
            num_attention_heads=[1, 2, 2, 4],
            decoder_hidden_size=32,
        ),
        image,
    ),
    Entry(
        "clip",
        "text and images",
        clip,
        lambda: (torch.cat([tokens(11, vocab=500), torch.tensor([[511]])], 1), numbers(1, 3, 32, 32)),
    ),
    Entry(
        "convnext",
        "convolutions",
        lambda: transformers_model("ConvNext", image_size=64, depths=[1, 1, 2, 1], hidden_sizes=[16, 32, 48, 64]),
        image,
    ),
    Entry("resnet50", "convolutions", lambda: torchvision_model("resnet50"), image, HALF),
    Entry("resnext50", "convolutions", lambda: torchvision_model("resnext50_32x4d"), image),
    Entry("efficientnet-b0", "convolutions", lambda: torchvision_model("efficientnet_b0"), image),
    Entry("mobilenet-v3", "convolutions", lambda: torchvision_model("mobilenet_v3_small"), image),
    Entry("densenet121", "convolutions", lambda: torchvision_model("densenet121"), image),
    Entry("shufflenet", "convolutions", lambda: torchvision_model("shufflenet_v2_x1_0"), image),
    Entry("maxvit", "vision transformer", lambda: torchvision_model("maxvit_t"), lambda: image(224)),
    Entry("resnet-fpn", "detection backbone", fpn, image),
    Entry("detr", "detection", detr, image),
    Entry("ssdlite", "detection backbone", lambda: ssdlite(), lambda: image(96)),
    Entry("deeplab", "segmentation", lambda: Named(with_averages(deeplab()), "out"), image),
]


def ssdlite() -> nn.Module:
    """The backbone of SSDlite: MobileNetV3 and its extra maps."""
    import torchvision

    return with_averages(
        Named(
            torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).backbone,
            "1",
        )
    )


def deeplab() -> nn.Module:
    import torchvision

    model: nn.Module = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    return model
