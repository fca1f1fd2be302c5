"""Signals: the handler is called, and a closed terminal neither stops the command early nor fails its output."""

import os
import pty
import signal
import sys
import time

from modeling_jmnat.utils.signals import handling


def test_a_command_ends_in_order_when_its_terminal_is_closed(tmp_path):
    child, terminal = pty.fork()
    if child == 0:
        try:
            noted = []
            with handling(lambda number, frame: noted.append(number), signal.SIGHUP):
                os.write(1, b"!")
                while not noted:
                    time.sleep(0.01)
                print("to nobody", file=sys.__stderr__, flush=True)
                os.write(1, b"to nobody")
                (tmp_path / "saved").touch()
        finally:
            os._exit(0)
    assert os.read(terminal, 1) == b"!"
    os.close(terminal)
    os.waitpid(child, 0)
    assert (tmp_path / "saved").exists()


def test_under_nohup_the_signal_stays_ignored():
    noted, before = [], signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handling(lambda number, frame: noted.append(number), signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert noted == [signal.SIGTERM]
