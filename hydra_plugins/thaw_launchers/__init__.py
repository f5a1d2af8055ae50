"""How the jobs of a sweep are run. Hydra takes launchers from packages below ``hydra_plugins`` only."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn


class LocalLauncher(BasicLauncher):
    """One job after the other, in this process."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from thaw.commands import complete_job

        assert self.config is not None
        name = self.config.hydra.job.config_name
        return super().launch([complete_job(name, overrides) for overrides in job_overrides], initial_job_idx)
