"""Mutual self-attention: Cao et al. 2023 (MasaCtrl), arXiv 2304.08465."""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import Tensor

from configs import UserError
from models.attention import AttentionCall, AttentionHook
from models.context import Context
from samplers.guidance.base import Hook
from samplers.guidance.p2p import count_steps, require_edits
from samplers.guidance.sites import PARTS
from samplers.protocol import Plan, Step


class MasaCtrl(Hook):
    """In self-attention, an edit asks the keys and values of its source by its own queries: ``softmax(q_edit k_source^T
    / sqrt(d)) v_source`` (eq. 4), so that it shows what the source shows, arranged by its own condition. In all
    branches, nulls included; the source stays as it is. (The variant with masks is not there.)

    :param begin: share of the steps that come before; the paper's step 4 of 50
    :param sites: names or globs of self-attentions, or down, mid, up; the paper's are those of the decoder
    :raises UserError: for a share outside of [0, 1], sites that there are not, or where nothing is edited
    """

    branches = "all"

    def __init__(self, begin: float = 0.08, sites: Sequence[str] = ("up",)):
        if not 0 <= begin <= 1:
            raise UserError(f"begin={begin:g} of MasaCtrl", "a share of the steps in [0, 1]",
                            "guidance.masactrl.begin=0.08")
        self.begin, self.sites = begin, tuple(f"{site}.*" if site in PARTS else site for site in sites)

    def check_plan(self, plan: Plan) -> None:
        require_edits(plan, "guidance=masactrl")
        names = [site.name for site in plan.sites if site.kind == "self"]
        for site in self.sites:
            if not any(fnmatchcase(name, site) for name in names):
                raise UserError(f"an attention site {site!r}", f"one of {', '.join(names) or 'none'}",
                                f"guidance.masactrl.sites=[{names[-1]}]" if names else "guidance=none")

    def attn(self, ctx: Context, step: Step | None) -> AttentionHook | None:
        if step is None or step.i < count_steps(self.begin, step.n):
            return None
        sources = step.sources

        def hook(call: AttentionCall) -> Tensor | None:
            if call.site.kind != "self" or not any(fnmatchcase(call.site.name, site) for site in self.sites):
                return None
            return replace(call, k=call.k[sources], v=call.v[sources]).rest()

        return hook
