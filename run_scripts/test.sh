#!/usr/bin/env bash
# Set up once, check the style, run the tests; further arguments go to pytest (bash run_scripts/test.sh -k losses).
# With --transformers as the first of them: the tests that Transformers applies to each of its own models, on ours, from
# its source distribution on PyPI (one minute). Code 75 says that it could not be had and nothing was tested.
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/set_up.sh
if ! python -c "import ctranslate2, onnx, onnxruntime, onnxscript, polib, ray, uvicorn" 2> /dev/null; then
    python -m pip install --quiet --constraint constraints.txt --editable '.[bench,cluster,documents,serve]' ||
        echo "what ONNX, CTranslate2, Ray, the server or documents need could not be installed: their tests are skipped"
fi
if ! python -c "import ipykernel, material, nbclient" 2> /dev/null; then
    python -m pip install --quiet --constraint constraints.txt --editable '.[docs,notebooks]' ||
        echo "what notebooks and the site need could not be installed: their tests are skipped"
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
if [ "${1:-}" = --transformers ]; then
    common_tests="$(python tests/transformers_common/fetch.py)"
    export PYTHONPATH="$common_tests${PYTHONPATH:+:$PYTHONPATH}"
    # In one process: thousands of subtests are slow to send from one to another.
    exec python -m pytest --timeout 600 --disable-warnings tests/transformers_common/common_*.py "${@:2}"
fi
ruff check .
ruff format --check .
python -m pytest --numprocesses "${JMNAT_TEST_PROCESSES:-2}" --dist loadfile --timeout 600 "$@"
