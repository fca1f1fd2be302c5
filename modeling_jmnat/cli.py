"""What every command of `run_scripts/` shares: one clear sentence and a non-zero exit on bad input."""

import functools
import sys

# Errors that a user causes and can mend. Anything else is a defect of ours and keeps its traceback.
USER_ERRORS = (ValueError, OSError)


def command(main):
    """Wrap `main(argv=None)` of a script: a `ValueError` or `OSError` is printed as one sentence, exit code 1."""

    @functools.wraps(main)
    def wrapped(argv=None):
        try:
            return main(argv)
        except USER_ERRORS as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("stopped; run the same command again to go on", file=sys.stderr)
            sys.exit(130)

    return wrapped
