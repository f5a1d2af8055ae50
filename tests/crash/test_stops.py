"""Signals that a training gets: it saves, says so by its exit code, and the same command ends as if it had gone on."""

import pytest
from faults import Fault
from processes import run
from writers import RUN, WRITERS, list_different

from diffusion.runs import checkpoint

pytestmark = [pytest.mark.crash, pytest.mark.xdist_group("training")]
[TRAINING] = [writer for writer in WRITERS if writer.name == "training"]
AT = 3
"""The step at which the signals come: no checkpoint is due there."""


@pytest.mark.parametrize(("signals", "code", "saved"), [("SIGTERM", 143, AT), ("SIGINT", 130, AT),
                                                        ("SIGUSR1", 138, AT), ("SIGINT SIGINT", 130, AT - 1)])
def test_a_signal(signals, code, saved, measure, set_up, note):
    """The second Ctrl-C stops at once: what is saved is the checkpoint before."""
    reference = measure(TRAINING)
    place = set_up(reference.place, TRAINING)
    stopped = run(TRAINING.command, place, Fault("metrics.csv", AT, signals))
    steps = list(checkpoint.list_checkpoints(place / RUN / "checkpoints"))
    ended = run(TRAINING.command, place)
    note(signals, "training", lost=AT - max(steps), unit="steps")
    assert (stopped.code, max(steps)) == (code, saved), stopped.said
    assert "Traceback" not in stopped.said
    assert ended.code == 0
    assert f"resuming at step {saved}" in ended.said
    assert list_different(place, reference.files) == []
