#!/usr/bin/env bash
# Build the wheel, install it where the checkout is not on the path, and train a step with it.
#   bash scripts/test_wheel.sh .venv/bin/python
set -euo pipefail
python=$(realpath -s "$1")
checkout=$(cd "$(dirname "$0")/.." && pwd)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
git -C "$checkout" ls-files -z | (cd "$checkout" && xargs -0 cp --parents -t "$place" 2>/dev/null || true)
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps "$place" -w "$place/dist"
"$python" -m venv "$place/venv"
# The libraries of the first environment, without its editable install: .pth files there are not read.
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
  > "$("$place/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/libraries.pth"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "$place"/dist/*.whl
mkdir "$place/elsewhere"
cd "$place/elsewhere"
small=(debug=fast model=nano max_steps=1 trainer.threads=1 trainer.accelerator=cpu callbacks.pictures.count=0)
"$place/venv/bin/thaw-train" experiment=ddpm_digits run.name=wheel run.root=runs "${small[@]}"
"$place/venv/bin/thaw-train" -m experiment=ddpm_digits run.name=wheel run.root=runs seed=1,2 "${small[@]}"
"$place/venv/bin/thaw-sample" run=runs/ddpm_digits/wheel samples=0-1 sampler.num_steps=2 device=cpu
"$place/venv/bin/python" - "$place" <<'PY'
import sys
from pathlib import Path

import thaw

place = Path(sys.argv[1])
assert (place / "venv") in Path(thaw.__file__).parents, thaw.__file__
assert (Path(thaw.__file__).parent / "py.typed").is_file()
assert "ddim" in thaw.samplers.available()
print("thaw", thaw.__version__, "from a wheel:", tuple(thaw.load("runs/ddpm_digits/wheel").sample(range(2)).shape))
PY
