#!/usr/bin/env bash
# Set up once, check the style, run the tests; further arguments go to pytest (bash run_scripts/test.sh -k losses).
set -euo pipefail
cd "$(dirname "$0")/.."
source run_scripts/set_up.sh
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
ruff check .
ruff format --check .
python -m pytest --numprocesses "${JMNAT_TEST_PROCESSES:-2}" --dist loadfile --timeout 600 "$@"
