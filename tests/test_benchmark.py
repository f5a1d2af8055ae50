"""The benchmark's runner, with fake candidates on a fake clock."""

import json
from functools import partial

import benchmark
import pytest
import torch
from benchmarks import networks, parts, profile, quality, timing

import degradations
from configs import UserError
from degradations.base import State


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
    return timing.Case("a job", calls, "a", partial(timing.cpu_time, clock=clock))


def test_candidates_take_turns(clock):
    times = timing.measure(case(clock, a=[9, 1], b=[8, 2], c=[3]), rounds=3)
    assert clock.calls == [*"aabbcc", *"abc" * 3]
    assert times == {"a": [1, 1, 1], "b": [2, 2, 2], "c": [3, 3, 3]}


def test_a_quick_candidate_is_called_several_times(clock):
    times = timing.measure(case(clock, a=[0.004], b=[1]), rounds=2)
    assert clock.calls.count("a") == 2 + 2 * 6
    assert times["a"] == pytest.approx([0.004] * 2)


def test_part_of_a_job_is_scaled(clock):
    job = case(clock, a=[1], b=[2])
    job.scale["b"] = 10
    assert timing.measure(job, rounds=2) == {"a": [1, 1], "b": [20, 20]}


def test_the_ratio_is_the_median_of_the_ratios_of_each_round():
    rows = timing.summary({"a": [1, 10, 2], "b": [2, 20, 20]}, "a")
    assert rows["a"] == {"median": 2, "q1": 1.5, "q3": 6, "ratio": 1}
    assert rows["b"] == {"median": 20, "q1": 11, "q3": 20, "ratio": 2}
    assert timing.summary({"a": [3]}, "a")["a"] == {"median": 3, "q1": 3, "q3": 3, "ratio": 1}


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
    (["degradation"], ["subject 'degradation'", "one of train, sample, peers, ", "try:    degradations"]),
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
    torch.testing.assert_close(parts.blur_chain(x, blur, 4, picks)(), expected, atol=1e-5, rtol=0)


def test_quick_leaves_the_chain_out():
    full = [list(case.candidates) for case in parts.blurs("cpu", quick=False)]
    quick = [list(case.candidates) for case in parts.degradations("cpu", quick=True)]
    assert [names[:-1] for names in full] == quick
    assert full[-1][-1] == "chain, T = 300 (first 20 x 15)"


def test_every_operator_beside_a_training_step():
    case = parts.operators("cpu", size=64, batch=2, part=1)
    for name in degradations.available():
        three = [call for title, call in case.candidates.items() if title.startswith(f"{name}, ")]
        assert len(three) == 3
        assert three[0]().shape == (2, 3, 64, 64)
    assert case.scale == {case.baseline: 2}


def test_child_time_counts_children():
    assert timing.child_time(partial(parts.python, "-c", "sum(range(10**6))"), 1) > 0
    with pytest.raises(UserError, match="ended with 3"):
        parts.python("-c", "raise SystemExit(3)")


def test_guidance_in_one_call_is_the_three_evaluations():
    for case in parts.guidance("cpu", quick=True):
        apart, together = (call() for call in case.candidates.values())
        torch.testing.assert_close(together.x0, apart.x0, atol=1e-4, rtol=1e-4)


def test_rates_and_shares_are_of_the_median(clock):
    job = case(clock, a=[2])
    full = timing.Case(job.title, {**job.candidates, f"{timing.CEILING}product, 32": clock.candidate("c", 1)}, "a",
                       job.timer, images=8, flops={"a": 4e9, f"{timing.CEILING}product, 32": 8e9})
    rows = timing.summary(timing.measure(full, 2), "a", full.images, full.flops)
    assert (rows["a"]["images_per_s"], rows["a"]["gflops"]) == (4, 2)
    head, first, top = timing.tabulate(full, rows)
    assert head[-3:] == ["images/s", "GFLOP/s", "share"]
    assert (first[-3:], top[-3:]) == (["4.0", "2.0", "25%"], ["", "8.0", "100%"])
    assert "| a * | 2,000.000 |" in timing.write_markdown(full, rows)


CONTENDERS = networks.list_contenders(32, 1, "cpu", True, True)


@pytest.mark.parametrize("name", [name for name in CONTENDERS if name.endswith(", 32")])
def test_networks_train_and_sample(name):
    each = CONTENDERS[name]()
    before = [value.clone() for value in each.net.parameters()]
    each.train(torch.rand(2, 1, 32, 32) * 2 - 1)
    assert any((value != old).any() for value, old in zip(each.net.parameters(), before, strict=True))
    assert each.sample(2, 2).shape == (2, 1, 32, 32)


def test_memory_counts_each_storage_once():
    x, weight = torch.rand(100, 100), torch.nn.Parameter(torch.rand(100, 100))
    assert timing.measure(timing.Case("", {"a": lambda: (x * weight) * (x * weight)}, "a", networks.saved_bytes), 1) \
        == {"a": [3 * 100 * 100 * 4]}  # x, and the two products; the parameter is there anyway


@pytest.mark.commands
def test_what_starts_is_the_command_of_the_repository():
    parts.python("train.py", "modle=tiny", code=1)
    with pytest.raises(UserError, match="ended with 1"):
        parts.python("train.py", "modle=tiny")


@pytest.mark.parametrize(("name", "kind"), [
    ("aten::mkldnn_convolution", "convolutions"), ("aten::convolution_backward", "convolutions"),
    ("aten::addmm", "products of matrices"), ("aten::native_layer_norm_backward", "norms"),
    ("aten::silu_backward", "activations"), ("aten::_softmax", "softmax"),
    ("aten::_fused_adamw_", "optimizer and average"),
    ("aten::_to_copy", "copies, casts, concatenations"), ("aten::add_", profile.REST),
    ("autograd::engine::evaluate_function: ConvolutionBackward0", profile.REST)])
def test_operations_by_their_kind(name, kind):
    assert profile.find_kind(name) == kind


def test_the_profile_of_a_product():
    """All operations are those of the one product, and so is the time."""
    a = torch.randn(1024, 1024)  # large beside what the profiler costs
    assert profile.split_flops(lambda: torch.mm(a, a)) == {"products of matrices": 2 * 1024**3}
    assert next(iter(profile.split_time(lambda: torch.mm(a, a), "cpu"))) == "products of matrices"


def test_subjects_of_their_own_answer_a_mistake_like_the_others(capsys):
    assert benchmark.main(["profile", "model=tinny"]) == 2
    assert "tinny" in capsys.readouterr().err


@pytest.mark.parametrize(("costs", "steps"), [
    ((1.0, 2.0), 33), ((5.0, 13.0), 1), ((4.5, 8.5), 2), ((0.0, 0.0008), 1000), ((0.9, 0.9), 42), ((0.9, 0.8), 47)])
def test_steps_for_a_cost(costs, steps):
    """Start and step of each, and 5 seconds; where the clock says that more steps cost less, no cost is made up."""
    assert quality.count_steps(dict(zip((1, 9), costs, strict=True)), 5.0) == steps
