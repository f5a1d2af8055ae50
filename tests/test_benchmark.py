"""The benchmark's runner, with fake candidates on a fake clock."""

import importlib.util
import json
from functools import partial
from pathlib import Path

import pytest
import torch

import degradations
from degradations.base import State

SPEC = importlib.util.spec_from_file_location("benchmark", Path(__file__).parents[1] / "scripts" / "benchmark.py")
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)


class Clock:
    """A clock that only candidates move."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def candidate(self, name, *seconds):
        """A call that takes these times in turn; the last one from then on."""
        left = list(seconds)

        def call():
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


@pytest.fixture
def clock():
    return Clock()


def case(clock, **candidates):
    calls = {name: clock.candidate(name, *seconds) for name, seconds in candidates.items()}
    return benchmark.Case("a job", calls, "a", partial(benchmark.cpu_time, clock=clock))


def test_candidates_take_turns(clock):
    times = benchmark.measure(case(clock, a=[9, 1], b=[8, 2], c=[3]), rounds=3)
    assert clock.calls == [*"aabbcc", *"abc" * 3]
    assert times == {"a": [1, 1, 1], "b": [2, 2, 2], "c": [3, 3, 3]}


def test_a_quick_candidate_is_called_several_times(clock):
    times = benchmark.measure(case(clock, a=[0.004], b=[1]), rounds=2)
    assert clock.calls.count("a") == 2 + 2 * 6
    assert times["a"] == pytest.approx([0.004] * 2)


def test_part_of_a_job_is_scaled(clock):
    job = case(clock, a=[1], b=[2])
    job.scale["b"] = 10
    assert benchmark.measure(job, rounds=2) == {"a": [1, 1], "b": [20, 20]}


def test_the_ratio_is_the_median_of_the_ratios_of_each_round():
    rows = benchmark.summary({"a": [1, 10, 2], "b": [2, 20, 20]}, "a")
    assert rows["a"] == {"median": 2, "q1": 1.5, "q3": 6, "ratio": 1}
    assert rows["b"] == {"median": 20, "q1": 11, "q3": 20, "ratio": 2}
    assert benchmark.summary({"a": [3]}, "a")["a"] == {"median": 3, "q1": 3, "q3": 3, "ratio": 1}


def test_json(clock, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(benchmark.SUBJECTS, "fake", lambda device, quick: iter([case(clock, a=[1], b=[2])]))
    assert benchmark.main(["fake", "--rounds", "3", "--json", str(tmp_path / "out.json")]) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert set(report) == {"date", "machine", "device", "threads", "rounds", "versions", "cases"}
    assert (report["threads"], report["rounds"], report["device"]) == (1, 3, "cpu")
    assert report["versions"]["torch"] == torch.__version__
    found = report["cases"][0]
    assert (found["subject"], found["case"], found["baseline"]) == ("fake", "a job", "a")
    assert found["rows"]["b"] == {"median": 2, "q1": 2, "q3": 2, "ratio": 2}
    assert "a job" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "words"), [
    (["degradation"], ["subject 'degradation'", "one of degradations, ", "try:    degradations"]),
    (["degradations", "--rounds", "0"], ["at least one round"]),
])
def test_mistakes_are_answered_in_words(arguments, words, capsys):
    assert benchmark.main(arguments) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words)


def test_the_chain_does_the_same_job_as_the_table():
    blur = degradations.build("blur", levels=4, padding="reflect", kernels="exponential")
    x, picks = torch.rand(3, 2, 16, 16), torch.tensor([1, 4, 2])
    expected = blur.forward(x, picks / 4, State())
    torch.testing.assert_close(benchmark.blur_chain(x, blur, 4, picks)(), expected, atol=1e-5, rtol=0)


def test_quick_leaves_the_chain_out():
    full = [list(case.candidates) for case in benchmark.blurs("cpu", quick=False)]
    quick = [list(case.candidates) for case in benchmark.degradations("cpu", quick=True)]
    assert [names[:-1] for names in full] == quick
    assert full[-1][-1] == "chain, T = 300 (first 20 x 15)"


def test_every_operator_beside_a_training_step():
    case = benchmark.operators("cpu", size=64, batch=2, part=1)
    for name in degradations.available():
        three = [call for title, call in case.candidates.items() if title.startswith(f"{name}, ")]
        assert len(three) == 3
        assert three[0]().shape == (2, 3, 64, 64)
    assert case.scale == {case.baseline: 2}


def test_child_time_counts_children():
    assert benchmark.child_time(partial(benchmark.python, "-c", "sum(range(10**6))"), 1) > 0
    with pytest.raises(benchmark.UserError, match="ended with 3"):
        benchmark.python("-c", "raise SystemExit(3)")


def test_guidance_in_one_call_is_the_three_evaluations():
    for case in benchmark.guidance("cpu", quick=True):
        apart, together = (call() for call in case.candidates.values())
        torch.testing.assert_close(together.x0, apart.x0, atol=1e-4, rtol=1e-4)
