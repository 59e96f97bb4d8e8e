"""Ctrl-C and SIGTERM are answered at once, also while JAX is imported, compiles or computes.

Python's own handler waits for that work, which may take a minute, and some libraries drop the
exception that it raises. A thread hears of the signal at once and raises nothing.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

STATUS = 130
"""The exit status, as of every program that Ctrl-C ended; of one that SIGTERM ended it is 143"""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Ctrl-C ends the command at once; between the steps of a fit, it ends the fit."""

    def __init__(self):
        self.message = "interrupted."
        """What is said where Ctrl-C ends the command"""
        self.steps = False
        """Whether there is a fit that has made steps"""
        self.pressed = False
        """Whether Ctrl-C or SIGTERM ended the fit"""
        self.status = STATUS
        """The exit status of a command that was ended so"""

    def step(self, *_: object) -> bool:
        """The callback of a fit: whether to end it."""
        self.steps = True
        return self.pressed

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Listen to both, unless whoever started the command has Ctrl-C ignored."""
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            yield
            return
        self.__init__()
        ear, mouth = socket.socketpair()
        mouth.setblocking(False)
        threading.Thread(target=self._listen, args=(ear,), daemon=True).start()
        descriptor = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
        handlers = [signal.signal(number, lambda *_: None) for number in _SIGNALS]
        try:
            yield
        finally:
            for number, handler in zip(_SIGNALS, handlers, strict=True):
                signal.signal(number, handler)
            signal.set_wakeup_fd(descriptor)
            mouth.close()

    def _listen(self, ear: socket.socket) -> None:
        with ear:
            while received := ear.recv(1):
                if received[0] in _SIGNALS:
                    self.status = 128 + received[0]
                    self._answer()

    def _answer(self) -> None:
        if self.steps and not self.pressed:
            self.pressed = True
            _say("interrupted: the fit ends after this step. Ctrl-C again ends it at once.")
            return
        _say(self.message)
        os._exit(self.status)


def _say(message: str) -> None:
    # After the ^C that a terminal shows.
    sys.stderr.write(f"\ngmmx: {message}\n")
    sys.stderr.flush()


ctrl_c = Interrupts()
"""The command's own"""
