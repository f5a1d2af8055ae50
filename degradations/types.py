"""Names for the shapes that most functions of operators and samplers have; the base classes spell them out."""

from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "b *rest"]
"""A batch in the model's space: images (B, C, H, W), or vectors and sequences."""
Times = Float[Tensor, " b"]
"""A time in [0, 1] for each of the batch."""
