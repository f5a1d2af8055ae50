#!/bin/sh
# The runs and samples of tests/format_2, which every later version has to read. The version that introduces a format
# writes them, once: sh scripts/write_format_runs.sh tests/format_2
set -eu
out=$1
nano="debug=fast trainer.threads=1 trainer.accelerator=cpu callbacks.pictures.count=0 callbacks.checkpoint.keep=1"
nano="$nano max_steps=20 run.root=$out"
small="model=nano model.base=8 model.emb_dim=8 model.head_dim=8 model.multipliers=[1,1] model.attention=[1]"
python train.py experiment=ddpm_digits $nano $small run.name=hot
python train.py experiment=generate_blur_mnist data=digits $nano $small run.name=cold
python train.py experiment=classifier_digits $nano model.base=4 model.emb_dim=8 run.name=classifier
for run in ddpm_digits/hot generate_blur_mnist/cold; do
    python sample.py run="$out/$run" samples=0-3 sampler.num_steps=4 device=cpu out="$out/$run/expected"
    rm "$out/$run/expected/manifest.json" "$out/$run/expected/grid.png"
done
