"""`runyard worker`, as a process: its end while there is nobody yet whom it could serve."""

import signal
import socket

from shell_process import PATIENCE_S, Shell

END_S = 20


def test_a_worker_whose_server_says_nothing_heeds_a_signal(shell: Shell) -> None:
    """It hangs, or is a load balancer without a server behind it: the SDK waits for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE_S)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        process = shell.start("worker", "--runs", "--address", address)
        connection, _ = silent.accept()  # now it waits for an answer
        with connection:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=END_S)
    assert process.returncode == 0, out + err
    assert "Traceback" not in err
