"""The Inception network of the FID."""

from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from configs import UserError
from diffusion.metrics.base import Features
from diffusion.metrics.extractors.base import Extractor, needs, rgb, weights_file

OFFICIAL = "6726825d"
"""How the SHA-256 of weights-inception-2015-12-05-6726825d.pth begins: TensorFlow's weights, as torch-fidelity has
converted them."""


class InceptionExtractor(Extractor):
    """Inception v3 as Heusel et al. 2017 (arXiv 1706.08500) used it: the 2,048 pooled features, and for the Inception
    Score logits without their bias. torch-fidelity's network, with the resizing of TensorFlow 1.

    Only with the official weights the numbers are called FID, KID and IS.

    :param weights: the file ``weights-inception-2015-12-05-6726825d.pth`` of torch-fidelity's releases
    :param device: where to compute
    :raises UserError: torch-fidelity is not installed, or the file is not one of this network's weights
    """

    resizing = "299 px, bilinear as in TensorFlow 1 (no antialiasing, no half-pixel centres)"
    chunk = 64

    def __init__(self, weights: str | Path, device: str = "cpu"):
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ModuleNotFoundError as error:
            raise needs("torch-fidelity", "extractor=inception") from error
        file, self.identity, _ = weights_file(weights, "extractor.weights")
        try:
            self._network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"],
                                                        feature_extractor_weights_path=str(file)).to(device)
        except RuntimeError as error:
            raise UserError(f"{file} holds weights of another network", "torch-fidelity's Inception",
                            "extractor.weights=/path/to/weights-inception-2015-12-05-6726825d.pth") from error
        official = self.identity.startswith(OFFICIAL)
        self.name = "inception" if official else f"inception-{self.identity[:8]}"
        if official:
            self.official = {"fd": "FID", "kid": "KID", "is": "IS"}
        self._device = device

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Features:
        values, logits = self._network(rgb(images).to(self._device))
        return Features(values.float().cpu(), logits.float().cpu())
