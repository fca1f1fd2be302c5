# Sourced by demo.sh and test.sh: a virtual environment with the tested versions, made once and again when they change.
# Uses $PYTHON (default python3) and $JMNAT_VENV (default .venv); leaves its interpreter first on the PATH.

venv="${JMNAT_VENV:-.venv}"
wanted="$(cat setup.cfg constraints.txt | cksum)"
if [ ! -x "$venv/bin/python" ] || [ "$(cat "$venv/.set_up" 2>/dev/null)" != "$wanted" ]; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "error: ${PYTHON:-python3} is older than Python 3.10" >&2
        exit 1
    }
    echo "setting up $venv (once)"
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --constraint constraints.txt setuptools wheel torch
    "$venv/bin/python" -m pip install --quiet --constraint constraints.txt --editable '.[train,test]'
    echo "$wanted" > "$venv/.set_up"
fi
export PATH="$(cd "$venv/bin" && pwd):$PATH"
# Idle threads that spin, and memory that goes back to the system after every batch, cost half the speed on a CPU.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}" MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
