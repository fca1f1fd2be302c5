#!/usr/bin/env bash
# Translate with the model that comes with the project, then do the main job on the corpus in this repository: prepare
# text, train a teacher and a small JM-NAT, translate, score. Under ten minutes on two slow cores after the set-up.
# Interrupt it at any time: the next call goes on. All is kept in runs/demo.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/set_up.sh
run="${JMNAT_DEMO_DIR:-runs/demo}"
corpus=run_scripts/demo_data/libreoffice-help
mkdir -p "$run"
launch="torchrun --standalone --nproc_per_node 2 -m modeling_jmnat.commands"
export OMP_NUM_THREADS=1  # one for each of the two processes

echo "1. Held-out sentences by the model that comes with the project, pass by pass"
gzip -dc $corpus/test.de.gz | awk 'length($0) > 30 && length($0) < 60' | sed -n '26p;126p;301p' > "$run/sentences.de"
jmnat translate --model hub_card/de-en --input "$run/sentences.de" --num_iterations 4 --show_passes

echo "2. Now a small one of your own. Text to token ids: LibreOffice help, German to English"
if [ ! -f "$run/data/preparation.json" ]; then
    jmnat prepare --output_dir "$run/data" --source_lang de --target_lang en --vocab_size 3000 \
        --lowercase --max_tokens_per_sentence 30 \
        --train_source $corpus/train.de.gz --train_target $corpus/train.en.gz \
        --validation_source $corpus/valid.de.gz --validation_target $corpus/valid.en.gz \
        --test_source $corpus/test.de.gz --test_target $corpus/test.en.gz
fi

echo "3. An autoregressive teacher, whose weights JM-NAT begins with"
if [ ! -f "$run/teacher/results.json" ]; then
    $launch train-teacher --preset demo --data "$run/data" --output_dir "$run/teacher"
fi

echo "4. JM-NAT"
if [ ! -f "$run/model/results.json" ]; then
    $launch train --preset demo --data "$run/data" --init_from_teacher "$run/teacher" --output_dir "$run/model"
fi

echo "5. The same sentences by your model"
jmnat translate --model "$run/model" --input "$run/sentences.de" --num_iterations 4 --show_passes

echo "6. Its score on 200 held-out sentences, and milliseconds per sentence one at a time on one core"
gzip -dc $corpus/test.de.gz | awk 'NR % 10 == 0' > "$run/test.de"
gzip -dc $corpus/test.en.gz | awk 'NR % 10 == 0' > "$run/test.en"
jmnat evaluate --model "$run/model" --source "$run/test.de" --reference "$run/test.en" --lowercase \
    --num_iterations 1 4 10 --num_length_candidates 4 --latency_sentences 50 --output "$run/evaluation.json" > /dev/null
python - "$run/evaluation.json" <<'TABLE'
import json, sys
print("passes  BLEU  ms per sentence")
for row in json.load(open(sys.argv[1]))["results"]:
    print(f"{row['num_iterations']:6d}  {row['sacrebleu']:4.1f}  {row['latency_ms']['mean']:15.0f}")
TABLE
