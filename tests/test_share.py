"""Which process of several this one is, by environments as SLURM and torchrun make them."""

import pytest
from omegaconf import DictConfig

from configs import UserError
from diffusion.commands import find_own_share
from diffusion.runs.share import ALONE, Share, find_share, list_array

pytestmark = pytest.mark.commands


def array(number, numbers, step=None):
    """The environment of a job of an array."""
    return {"SLURM_JOB_ID": "900", "SLURM_ARRAY_JOB_ID": "800", "SLURM_ARRAY_TASK_ID": str(number),
            "SLURM_ARRAY_TASK_COUNT": str(len(numbers)), "SLURM_ARRAY_TASK_MIN": str(min(numbers)),
            "SLURM_ARRAY_TASK_MAX": str(max(numbers)), "SLURM_ARRAY_TASK_STEP": str(step or 1)}


def srun(number, count, local=0):
    return {"SLURM_STEP_ID": "0", "SLURM_PROCID": str(number), "SLURM_NTASKS": str(count),
            "SLURM_LOCALID": str(local)}


def torchrun(number, count, local=0):
    return {"RANK": str(number), "WORLD_SIZE": str(count), "LOCAL_RANK": str(local)}


def silent(array):
    return ""


BATCH = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
"""In a script of sbatch, outside of srun."""


@pytest.mark.parametrize(("environ", "expected"), [
    ({}, ALONE),
    (BATCH, ALONE),
    ({**BATCH, "SLURM_STEP_ID": "4294967291"}, ALONE),
    (srun(2, 4, 1), Share(2, 4, "srun", 1)),
    ({**srun(1, 8), "SLURM_STEP_NUM_TASKS": "2"}, Share(1, 2, "srun")),
    (torchrun(3, 8, 3), Share(3, 8, "torchrun", 3)),
    ({**srun(1, 2), **torchrun(5, 8, 1)}, Share(5, 8, "torchrun", 1)),
    ({"WORLD_SIZE": "8"}, ALONE),
    (array(0, range(3)), Share(0, 3, "SLURM array")),
    (array(7, range(5, 9)), Share(2, 4, "SLURM array")),
    (array(9, range(1, 10, 4), 4), Share(2, 3, "SLURM array")),
    (array(5, [5]), Share(0, 1, "SLURM array")),
    ({**BATCH, **array(1, range(2))}, Share(1, 2, "SLURM array")),
    ({**array(1, range(3)), **srun(1, 2, 1)}, Share(3, 6, "SLURM array, srun", 1)),
    ({**array(1, range(3)), **srun(0, 1)}, Share(1, 3, "SLURM array")),
])
def test_auto(environ, expected):
    assert find_share("auto", environ, ask_slurm=silent) == expected


def test_none_and_parts_that_are_typed():
    everything = {**array(1, range(3)), **srun(1, 2)}
    assert find_share("none", everything) == ALONE
    assert find_share("2/3", everything) == Share(1, 3)
    assert str(Share(1, 3, "SLURM array")) == "part 2 of 3 (SLURM array)"
    assert str(Share(1, 3)) == "part 2 of 3"


@pytest.mark.parametrize("asked", ["0/3", "4/3", "1/0", "1", "a/b", "1/2/3", "-1/3", "all", "1.5/3", ""])
def test_refused(asked):
    with pytest.raises(UserError, match="counted from 1"):
        find_share(asked, {})


@pytest.mark.parametrize("environ", [torchrun(8, 8), torchrun("a", 8), torchrun(-1, 8) | {"WORLD_SIZE": "-2"},
                                     srun(0, "2(x3)"), array(0, range(3)) | {"SLURM_ARRAY_TASK_ID": "x"}])
def test_an_environment_that_means_nothing(environ):
    with pytest.raises(UserError, match="in the environment"):
        find_share("auto", environ, ask_slurm=silent)


def test_a_sweep_may_be_an_array_itself():
    assert find_share("auto", array(1, range(3)), sweep=True) == ALONE
    assert find_share("auto", {**array(1, range(3)), **srun(1, 2)}, sweep=True) == Share(1, 2, "srun")


SAID = """JobId=800 ArrayJobId=800 ArrayTaskId=9-13:2%4 JobName=x
JobId=801 ArrayJobId=800 ArrayTaskId=1 ArrayTaskThrottle=4 JobName=x
JobId=802 ArrayJobId=800 ArrayTaskId=7 JobName=x
"""


def test_an_array_with_gaps():
    """SLURM is asked, of the array; if it does not know all of its jobs any more, the user has to say."""
    numbers, asked = [1, 7, 9, 11, 13], []

    def tell(array):
        asked.append(array)
        return SAID

    assert list_array(SAID) == numbers
    shares = [find_share("auto", array(number, numbers), ask_slurm=tell) for number in numbers]
    assert shares == [Share(i, 5, "SLURM array") for i in range(5)]
    assert asked == ["800"] * 5
    for said in ("", SAID.replace("ArrayTaskId=7 ", ""), SAID.replace("ArrayTaskId=1 ", "ArrayTaskId=2 ")):
        with pytest.raises(UserError, match=r"shard=i/n"):
            find_share("auto", array(1, numbers), ask_slurm=lambda array, said=said: said)
    with pytest.raises(UserError, match=r"shard=i/n"):
        find_share("auto", {"SLURM_ARRAY_TASK_ID": "1"}, ask_slurm=silent)


@pytest.mark.parametrize(("n", "count"), [(0, 3), (2, 5), (10, 3), (1000, 7)])
def test_shares_are_all_of_the_work_and_even(n, count):
    cuts = [Share(i, count).cut(n) for i in range(count)]
    assert [k for cut in cuts for k in cut] == list(range(n))
    assert max(map(len, cuts)) - min(map(len, cuts)) <= 1


@pytest.mark.parametrize(("environ", "said"), [(array(1, range(3)), "3 processes (SLURM array)"),
                                               (torchrun(0, 2), "2 processes (torchrun)"), (srun(0, 1), "")])
def test_one_of_several_that_does_all_of_the_work_says_so(environ, said, monkeypatch, caplog):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    caplog.set_level("INFO")
    assert find_own_share(DictConfig({"shard": "none", "overwrite": False})) == ALONE
    assert said in caplog.text
    assert bool(said) == ("shard=auto" in caplog.text)
