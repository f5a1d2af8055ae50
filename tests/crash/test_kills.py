"""kill -9 at any moment: the same command again ends as if nothing had happened, and nothing is left lying about."""

from dataclasses import dataclass, field
from fnmatch import fnmatch

import pytest
from faults import STAGES, Fault
from processes import run
from writers import by_kind, by_writer, list_different, list_torn

pytestmark = [pytest.mark.crash]
ANYWHERE = [f"anywhere-{i}" for i in range(3)]


@dataclass
class Trial:
    """A command that is killed and given again in the place of its reference.

    :ivar wrong: what is not as it should be, in words
    :ivar lost: the most work that a kill has cost
    :ivar words: what the next start must say
    """

    writer: object
    reference: object
    atomic: bool = True
    wrong: list[str] = field(default_factory=list)
    lost: int = 0
    words: str = ""

    def kill(self, fault=None, after=None) -> bool:
        """Start it, and kill it at a fault or after so many seconds; whether it was killed before it ended."""
        place = self.reference.place
        ended = run(self.writer.command, place, fault, self.atomic, after)
        if ended.code >= 0:
            assert ended.code == 0, ended.said
            return False
        self.wrong += list_torn(place, self.reference.files, self.reference.writes)
        try:
            lost, self.words = self.writer.lose(place, ended.said)
        except ValueError as error:
            lost, self.words = 0, ""
            self.wrong.append(f"cannot be read after the kill: {error}")
        self.lost = max(self.lost, lost)
        return True

    def finish(self) -> None:
        """Start it once more, and compare."""
        ended = run(self.writer.command, self.reference.place, atomic=self.atomic)
        if ended.code:
            self.wrong.append(f"exit code {ended.code}: {ended.said}")
        if self.words not in ended.said:
            self.wrong.append(f"not said: {self.words}\n{ended.said}")
        if self.lost > self.writer.most:
            self.wrong.append(f"{self.lost} {self.writer.unit} lost")
        complete = self.writer.command[0] == "train.py" and self.words == "this run is complete"
        self.wrong += list_different(self.reference.place, self.reference.files, complete)


@pytest.fixture
def attempt(measure, set_up):
    """Begins a trial."""

    def attempt(writer, atomic: bool = True) -> Trial:
        reference = measure(writer)
        set_up(reference.place, writer)
        return Trial(writer, reference, atomic)

    return attempt


@by_writer()
@pytest.mark.parametrize("moment", ANYWHERE)
def test_killed_twice_anywhere(writer, moment, attempt, set_up, rng, note):
    trial = attempt(writer)
    moments = []
    for _ in range(2):
        seconds = trial.reference.seconds
        for _ in range(10):
            moments.append(round(rng.random() * seconds, 3))
            if trial.kill(after=moments[-1]):
                break
            # It had ended before. What is done need not be done again: from the beginning, and sooner.
            set_up(trial.reference.place, writer)
            seconds *= 0.7
        else:
            pytest.fail(f"never killed: {moments}")
    trial.finish()
    note("kill -9 anywhere, twice", writer.name, lost=trial.lost, unit=writer.unit)
    assert not trial.wrong, "\n".join([f"killed after {moments} of {trial.reference.seconds:.2f} s", *trial.wrong])


@by_kind()
@pytest.mark.parametrize("stage", STAGES)
def test_killed_inside_a_write(writer, kind, stage, attempt, rng, note):
    trial = attempt(writer)
    count = sum(fnmatch(name, kind) for name in trial.reference.writes)
    fault = Fault(kind, rng.randint(1, count), stage)
    killed = trial.kill(fault)
    trial.finish()
    note("kill -9 inside a write", writer.name, lost=trial.lost, unit=writer.unit)
    assert killed
    assert not trial.wrong, "\n".join([f"{fault} of {count}", *trial.wrong])


@by_writer()
def test_the_kinds_of_a_writer_are_all_that_it_writes(writer, measure):
    """Those of commands that it starts aside, which are writers themselves."""
    if writer.name in ("training", "sampling", "archive"):
        kinds = (*writer.kinds, "index.html")  # the page of a training is written again at each start
        assert [name for name in measure(writer).writes if not any(fnmatch(name, kind) for kind in kinds)] == []
    assert all(any(fnmatch(name, kind) for name in measure(writer).writes) for kind in writer.kinds)


@by_writer("sampling", "checkpoints", "archive", "indexing")
@pytest.mark.parametrize("atomic", [True, False], ids=["whole", "in-halves"])
def test_files_that_are_written_in_place_are_noticed(writer, atomic, attempt):
    """Of this harness itself."""
    kind = "manifest.json" if writer.name == "sampling" else writer.kinds[0]
    trial = attempt(writer, atomic)
    killed = trial.kill(Fault(kind, 1, "half"))
    trial.finish()
    assert killed
    assert bool(trial.wrong) == (not atomic), trial.wrong
