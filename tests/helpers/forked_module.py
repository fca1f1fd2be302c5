"""`python -m MODULE` in a fork of this process, which has all imports already."""

import io
import os
import runpy
import sys
import traceback
from collections.abc import Callable, Sequence


class ForkedModule:
    """A module run as a program, in a session of its own.

    Args:
        module, arguments: as `python -m` takes them.
        output: file descriptor for standard output and error.
        before: called in the new process before the module runs.
    """

    def __init__(self, module: str, arguments: Sequence[str], output: int, before: Callable[[], object]):
        sys.stdout.flush()
        self.pid, self.returncode = os.fork(), None
        if self.pid:
            return
        code = 99
        try:
            os.setsid()
            before()
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout, sys.stderr = (
                io.TextIOWrapper(io.FileIO(number, "w", closefd=False), line_buffering=True) for number in (1, 2)
            )
            sys.argv = [module, *arguments]
            runpy.run_module(module, run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode
