"""Repairs of an inversion, with which a real image comes back also under guidance: direct inversion (Ju et al. 2023,
arXiv 2310.01506), and null-text inversion (Mokady et al. 2022, arXiv 2211.09794)."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from configs import UserError
from degradations.shapes import expand_like, flatten_rows
from samplers.guidance.base import GuidanceInput, Guided
from samplers.guidance.cfg import CFG
from samplers.protocol import Callback, LoopState, Plan


class DirectInversion(Callback):
    """After each step the sources are again what they were on the way up: ``x_s + (x*_s - x_s)`` (algorithm 1). So they
    are the given images in the end, under any guidance and with any sampler, and their attention is that of the images;
    edits of them stay as they are. It costs nothing.

    :raises UserError: without ``prior=inverted`` on the sampler's times
    """

    def check_plan(self, plan: Plan) -> None:
        require_pivots(plan, "edit=direct_inversion")

    def after(self, frame: LoopState) -> None:
        assert frame.x_s is not None
        sources = frame.step.sources
        own = sources == torch.arange(len(sources), device=sources.device)
        frame.x_s = torch.where(expand_like(own, frame.x_s), frame.pivots[frame.step.s], frame.x_s)


class NullText(Callback):
    """Before each step, the tokens of the null are trained until DDIM's step under classifier-free guidance leads from
    ``x_t`` to where the image was on the way up: ``min |x*_s - x_s(null)|^2`` (eq. 3), the mean over a source, from the
    result of the step before. Edits have the null of their source. What is best of all that was tried is taken, so that
    the error never grows.

    The code's learning rate ``lr (1 - i / 100)`` and tolerance ``1e-5 + 2e-5 i`` are for 50 steps; here i is
    ``50 i / n``. It costs up to ``iterations + 2`` evaluations of a source, most of them with gradients.

    :param lr: learning rate of Adam, which begins anew in each step
    :param iterations: of each step, at most
    :param tolerance: mean squared error below which a source is left alone, at the first step
    :raises UserError: for numbers below 0, without ``prior=inverted`` on the sampler's times, or without
        ``guidance=cfg`` of a model of texts
    """

    def __init__(self, lr: float = 0.01, iterations: int = 10, tolerance: float = 1e-5):
        if not (lr >= 0 and iterations >= 0 and tolerance >= 0):
            raise UserError(f"lr={lr:g}, iterations={iterations}, tolerance={tolerance:g} of null-text inversion",
                            "0 or more", "edit.null_text.iterations=10")
        self.lr, self.iterations, self.tolerance = lr, iterations, tolerance

    def check_plan(self, plan: Plan) -> None:
        require_pivots(plan, "edit=null_text")
        guides = [part for part in plan.parts if isinstance(part, CFG) and part.unconditional is None]
        if len(guides) != 1 or not plan.captions:
            raise UserError("edit=null_text without the null of a text to train", "one classifier-free guidance, of a "
                            "model of texts", "guidance=cfg, or edit=direct_inversion, which needs none")

    @torch.no_grad()
    def before(self, frame: LoopState) -> None:
        step, guided, null = frame.step, frame.restorer, frame.ctx.null
        assert isinstance(guided, Guided)
        assert null is not None
        (cfg,) = (term for term in guided.terms if isinstance(term, CFG))
        rows, twins = torch.unique(step.sources, return_inverse=True)
        few = replace(step, streams=replace(step.streams, indices=tuple(step.streams.indices[row] for row in rows)),
                      memory={}, captions=())
        x_t, state, ctx, goal = frame.x_t[rows], frame.state.rows(rows), frame.ctx[rows], frame.pivots[step.s][rows]
        view = GuidanceInput(guided.restorer, frame.degradation, x_t, x_t.new_full((len(rows),), step.t), ctx, state,
                             few)
        if cfg.off(view):
            return
        base = guided.restorer(x_t, view.t, ctx, state=state, step=few)
        alone = null[rows]

        def error(tokens: Tensor) -> Tensor:
            told = alone.replace(tokens={**alone.tokens, "main": tokens})
            estimate = guided.restorer(x_t, view.t, told, state=state, step=few)
            delta = cfg.delta(base, [estimate], view)
            assert delta is not None
            believed = base + delta
            x_s = frame.degradation.forward(believed.x0, x_t.new_full((len(rows),), step.s), believed.state)
            return flatten_rows(x_s - goal).square().mean(dim=1)

        tokens = self.train(error, alone.tokens["main"], step.i / step.n)
        frame.ctx = frame.ctx.replace(null=null.replace(tokens={**null.tokens, "main": tokens[twins]}, parts={}))

    @torch.enable_grad()
    def train(self, error: Callable[[Tensor], Float[Tensor, " b"]], tokens: Float[Tensor, "b l d"],
              progress: float) -> Float[Tensor, "b l d"]:
        """The tokens of the least error among those that Adam tries, each sample by itself.

        :param progress: ``i / n``
        """
        tolerance = self.tolerance + 1e-3 * progress
        best, least = tokens, torch.full((len(tokens),), torch.inf, device=tokens.device)
        tried = tokens.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([tried], lr=self.lr * (1 - progress / 2))
        for i in range(self.iterations + 1):
            found = error(tried)
            better = (found < least) & (least >= tolerance)
            best, least = torch.where(better[:, None, None], tried.detach(), best), torch.where(better, found, least)
            least = least.detach()
            if i == self.iterations or bool((least < tolerance).all()):
                break
            (tried.grad,) = torch.autograd.grad(found.sum(), tried)
            optimizer.step()
        return best.detach()


def require_pivots(plan: Plan, who: str) -> None:
    """Refuse a run that does not begin with inverted images.

    :param who: asks
    :raises UserError: with the way to do so
    """
    if not plan.inverted:
        raise UserError(f"{who} without images that were inverted at the sampler's times", "the way up to their noise",
                        "input=PHOTOS prior=inverted prior.num_steps=null")
