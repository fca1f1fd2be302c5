#!/usr/bin/env bash
# The main job on the corpus in this repository: prepare text, train a teacher and a small JM-NAT, translate, score. Eleven
# to fifteen minutes on two slow cores after the set-up. Interrupt it at any time: the next call goes on. All is kept in
# runs/demo.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/set_up.sh
run="${JMNAT_DEMO_DIR:-runs/demo}"
corpus=run_scripts/demo_data/libreoffice-help
mkdir -p "$run"
launch="torchrun --standalone --nproc_per_node 2"
export OMP_NUM_THREADS=1  # one for each of the two processes

echo "1. Text to token ids: LibreOffice help, German to English"
if [ ! -f "$run/data/preparation.json" ]; then
    python run_scripts/prepare_data.py --output_dir "$run/data" --source_lang de --target_lang en --vocab_size 3000 \
        --lowercase --max_tokens_per_sentence 30 \
        --train_source $corpus/train.de.gz --train_target $corpus/train.en.gz \
        --validation_source $corpus/valid.de.gz --validation_target $corpus/valid.en.gz \
        --test_source $corpus/test.de.gz --test_target $corpus/test.en.gz
fi

echo "2. An autoregressive teacher, whose weights JM-NAT begins with"
if [ ! -f "$run/teacher/results.json" ]; then
    $launch run_scripts/train_teacher.py --preset demo --data "$run/data" --output_dir "$run/teacher"
fi

echo "3. JM-NAT"
if [ ! -f "$run/model/results.json" ]; then
    $launch run_scripts/train_jmnat.py --preset demo --data "$run/data" --init_from_teacher "$run/teacher" \
        --output_dir "$run/model"
fi

echo "4. Held-out sentences, pass by pass"
gzip -dc $corpus/test.de.gz | awk 'length($0) > 30 && length($0) < 60' | sed -n '26p;126p;301p' > "$run/sentences.de"
python run_scripts/translate.py --model "$run/model" --input "$run/sentences.de" --num_iterations 4 --show_passes

echo "5. Score on 200 held-out sentences, and milliseconds per sentence one at a time on one core"
gzip -dc $corpus/test.de.gz | awk 'NR % 10 == 0' > "$run/test.de"
gzip -dc $corpus/test.en.gz | awk 'NR % 10 == 0' > "$run/test.en"
python run_scripts/evaluate.py --model "$run/model" --source "$run/test.de" --reference "$run/test.en" --lowercase \
    --num_iterations 1 4 10 --num_length_candidates 4 --latency_sentences 50 --output "$run/evaluation.json" > /dev/null
python - "$run/evaluation.json" <<'TABLE'
import json, sys
print("passes  BLEU  ms per sentence")
for row in json.load(open(sys.argv[1]))["results"]:
    print(f"{row['num_iterations']:6d}  {row['sacrebleu']:4.1f}  {row['latency_ms']['mean']:15.0f}")
TABLE

echo "6. The same sentences by the model that comes with the project, trained on more text for longer"
python run_scripts/translate.py --model hub_card/de-en --input "$run/sentences.de"
