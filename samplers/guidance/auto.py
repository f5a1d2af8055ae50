"""Autoguidance: Karras et al. 2024, arXiv 2406.02507."""

from collections.abc import Sequence

from samplers.guidance.base import Branch, GuidanceInput, GuidingModel
from samplers.guidance.scales import Contrast, Scale
from samplers.guidance.schedules import ScaleSchedule
from samplers.protocol import Restorer


class Autoguidance(Contrast):
    """``estimate_weak + w (estimate - estimate_weak)``: away from what a smaller or less trained model of the same
    task, under the same condition, says.

    :param weak: the worse model: another run, or an earlier checkpoint
    :param scale: w; 1 is off and costs nothing
    :param schedule: of ``w - 1`` over the run
    """

    neutral = 1.0

    def __init__(self, weak: Restorer, scale: Scale = 2.0, schedule: ScaleSchedule | None = None):
        super().__init__(scale, schedule)
        self.weak = weak

    @property
    def models(self) -> Sequence[GuidingModel]:
        return [self.weak] if isinstance(self.weak, GuidingModel) else []

    def branch(self, view: GuidanceInput) -> Branch:
        return Branch(view.ctx, restorer=self.weak)
