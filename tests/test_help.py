"""``--help``: the examples, this command's own choices, and every setting with what it means."""

import re

import pytest
from helpers import NANO, ROOT, call, train

from configs import available, compose
from configs.help import describe_command, find_source, list_settings, read_meanings, read_parameters
from configs.values import to_plain


@pytest.mark.parametrize("config", ["train", "sample", "evaluate", "reproduce", "export"])
def test_a_command_shows_its_own(config):
    said = describe_command(config)
    assert "_target_" not in said
    assert f"python {'scripts/' if config in ('reproduce', 'export') else ''}{config}.py" in said
    groups = {line.split(":")[0].strip() for line in said.partition("== Choices")[2].partition("== Settings")[0]
              .splitlines()[2:] if line}
    foreign = {"train": {"sampler", "guidance", "table", "metrics", "kind"}, "sample": {"model", "objective", "table"},
               "evaluate": {"model", "callbacks", "budget"}, "reproduce": {"model", "sampler"},
               "export": {"model", "sampler"}}[config]
    own = {"train": {"model", "experiment", "objective/times", "degradation/kernels"},
           "sample": {"sampler/grid", "edit"},
           "evaluate": {"metrics", "extractor", "guidance/schedule"}, "reproduce": {"table", "budget"},
           "export": set()}[config]
    assert own <= groups
    assert "experiment/base" not in groups
    assert not foreign & groups
    for group in own:
        assert f"  {group}: {', '.join(available(group))}" in said


def test_what_is_typed_is_shown():
    said = describe_command("train", ["experiment=cold_blur_digits", "optimizer.lr=0.5"])
    assert "(now cold_blur_digits)" in said
    assert re.search(r"^ +lr: 0.5 +# learning rate after the warm-up$", said, re.MULTILINE)
    assert re.search(r"^ +levels: \d+ +# number of steps T$", said, re.MULTILINE)
    assert re.search(r"^ +accumulate: 1 +# parts in which the batch is computed$", said, re.MULTILINE)


def test_every_setting_of_the_network_and_the_objective_is_explained():
    said = describe_command("train", ["experiment=ddpm_digits"])
    for part in ("model", "objective", "optimizer"):
        node = to_plain(compose("train", ["experiment=ddpm_digits"])[part])
        documented = read_parameters(node["_target_"])
        lines = list(list_settings(node, {}, part))
        assert len(documented) >= 4
        for key in documented.keys() & node.keys():
            assert any(line.strip().startswith(f"{key}:") and documented[key] in line for line in lines), key
            assert any(line.strip().startswith(f"{key}:") and " # " in line for line in said.splitlines()), key


def test_comments_of_a_file(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("# about\na: 1   # one\nb:     # two\n  c: 3  # three\n  d: 4\ne: 5  # five\n")
    assert read_meanings(path) == {"a": "one", "b": "two", "b.c": "three", "e": "five"}


def test_a_class_is_not_imported():
    assert find_source(["samplers", "ddim"]) == ROOT / "samplers" / "ddim.py"
    assert find_source(["no", "such"]) is None
    assert read_parameters("no.such.Class") == read_parameters("Class") == {}


def test_a_run_has_its_own_way_of_sampling(tmp_path, capsys):
    run = train(tmp_path, "experiment=cold_blur_digits", *NANO, "max_steps=1", "callbacks.pictures.count=0")
    code, _ = call("sample.py", f"run={run.folder}", "--help")
    assert code == 0
    assert "(now cold2)" in capsys.readouterr().out
    code, said = call("sample.py", "run=nowhere", "--help")
    assert (code, "Traceback" in said) == (2, False)
