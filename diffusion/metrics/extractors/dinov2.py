"""DINOv2, whose features follow human judgement more closely than Inception's."""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from configs import UserError
from diffusion.metrics.base import Features
from diffusion.metrics.extractors.base import Extractor, needs, rgb, weights_file

SIZES = {384: "small", 768: "base", 1024: "large"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DINOv2Extractor(Extractor):
    """The class token of a DINOv2 vision transformer with patches of 14 (Oquab et al. 2023, arXiv 2304.07193), as in
    the FD-DINOv2 of Stein et al. 2023 (arXiv 2306.04675), who take the large one, of images that Pillow has resized to
    8-bit values; torch's resizing differs from it by one grey level here and there. timm's network.

    :param weights: the authors' file ``dinov2_vitl14_pretrain.pth``, or that of the small or the base network
    :param device: where to compute
    :raises UserError: timm is not installed, or the file is not one of these
    """

    resizing = "224 px, bicubic with antialiasing, to 8 bits"
    chunk = 32

    def __init__(self, weights: str | Path, device: str = "cpu"):
        try:
            import timm
        except ModuleNotFoundError as error:
            raise needs("timm", "extractor=dinov2") from error
        file, self.identity, content = weights_file(weights, "extractor.weights")
        position = content.get("pos_embed")
        width = position.shape[-1] if position is not None and position.ndim == 3 else 0
        if position is None or width not in SIZES:
            raise UserError(f"{file} holds weights of another network", "DINOv2, small, base or large",
                            "extractor.weights=/path/to/dinov2_vitl14_pretrain.pth")
        self._network = timm.create_model(f"vit_{SIZES[width]}_patch14_dinov2", num_classes=0, img_size=224)
        content = {key: value for key, value in content.items() if key != "mask_token"}
        try:
            self._network.load_state_dict(content | {"pos_embed": positions(position, 16)})
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{file} holds weights of another network: {reason[:200]}",
                            "the authors' DINOv2 without registers",
                            "extractor.weights=/path/to/dinov2_vitl14_pretrain.pth") from error
        self._network = self._network.to(device).eval().requires_grad_(False)
        self.name = f"dinov2-{SIZES[width]}"
        if width == 1024:
            self.official = {"fd": "FD-DINOv2"}
        self._device = device

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Features:
        x = F.interpolate(rgb(images), (224, 224), mode="bicubic", antialias=True).to(self._device) / 255
        mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (MEAN, STD))
        return Features(self._network((x - mean) / std).float().cpu())


def positions(embedding: Float[Tensor, "1 n d"], side: int) -> Float[Tensor, "1 m d"]:
    """Position embeddings for ``side`` x ``side`` patches, the class token's in front: bicubic, with the authors' tenth
    of a patch that is added to the side, which their features depend on."""
    token, patches = embedding[:, :1], embedding[:, 1:]
    before = round(patches.shape[1] ** 0.5)
    grid = patches.unflatten(1, (before, before)).movedim(-1, 1)
    if before != side:
        scale = (side + 0.1) / before
        grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([token, grid.flatten(2).mT], dim=1)
