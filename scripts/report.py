"""A page about runs: ``python scripts/report.py runs/ddpm_digits [DIR ...] [--out report.html]``.

Tables of what ``evaluate.py`` has measured, one for each protocol; curves over the steps, and of quality over
diversity; the differences that exceed the noise; pictures, and the curves of the training. One HTML file that needs
nothing else. The folder of a single evaluation gets its own page instead, ``report.html`` in it. Nothing of a run is
executed.
"""

import argparse
from pathlib import Path

from configs import UserError
from configs.cli import stop
from diffusion.reports.runs import save_overview


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR",
                        help="run folders, or folders of such, such as those of a multirun; or one evaluation's")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the HTML file to write")
    arguments = parser.parse_args()
    try:
        print(save_overview(arguments.folders, arguments.out))
    except UserError as error:
        stop(str(error), 2)


if __name__ == "__main__":
    main()
