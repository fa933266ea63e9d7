"""A backend's process. It ends when its parent does, however that ends: it reads a pipe that only the parent holds.

The first line on stdin is JSON and says what to run; keys come this way, since argv is read by everybody. Either
{"llama": {arm: GGUF file}, "key", "context", "slots", "threads"}: one llama.cpp server for each file, whose addresses are
printed as one line of JSON; bench/serve_load.py also gives "lora" and "templates". Or
{"command": [...], "environment": {...}}: that program, in a process group of its own.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time


def llama(order):
    import xllamacpp

    running = {}
    for arm, file in order["llama"].items():
        params = xllamacpp.CommonParams()
        params.model.path, params.port, params.hostnames = file, 0, ["127.0.0.1"]
        params.n_parallel, params.n_ctx = order["slots"], order["slots"] * order["context"]
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = order["threads"]
        params.api_keys, params.ui, params.endpoint_slots, params.warmup = [order["key"]], False, False, False
        params.cache_ram_mib = 0  # it would keep old prompts in up to 8 GB
        params.n_threads_http, params.verbosity = 2 * order["slots"] + 4, -1
        params.chat_template = order.get("templates", {}).get(arm, params.chat_template)
        if lora := order.get("lora"):
            adapter = xllamacpp.CommonAdapterLoraInfo()
            adapter.path, adapter.scale = lora, 1.0
            params.lora_adapters, params.lora_init_without_apply = [adapter], True
        running[arm] = xllamacpp.Server(params)
    print(json.dumps({arm: server.listening_address for arm, server in running.items()}), flush=True)
    threading.Event().wait()


def keep(order):
    """Run a program, and end it and its own children with this process."""
    started = subprocess.Popen(order["command"], env=os.environ | order["environment"], stdin=subprocess.DEVNULL,
                               stdout=sys.stderr, start_new_session=True)  # fmt: skip

    def end():
        wait_for_the_end()
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(started.pid, how)
            except ProcessLookupError:
                break
            time.sleep(3)
        os._exit(0)

    threading.Thread(target=end, daemon=True).start()
    code = started.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)  # what it started and left
    os._exit(code % 256)


def wait_for_the_end():
    while os.read(0, 65536):
        pass


def main():
    if sys.argv[1:]:
        return print(__doc__)
    line = b""
    while not line.endswith(b"\n"):
        if not (piece := os.read(0, 65536)):
            os._exit(0)
        line += piece
    order = json.loads(line)
    if "command" in order:
        return keep(order)
    threading.Thread(target=lambda: (wait_for_the_end(), os._exit(0)), daemon=True).start()
    llama(order)


if __name__ == "__main__":
    main()
