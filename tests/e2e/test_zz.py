import pytest, signal
from harness.gateway import python_pid
from harness.process import alive, kill
from harness.waiting import eventually

@pytest.mark.parametrize("n", range(24))
def test_zz(start_gateway, n):
    gateway = start_gateway("--agent", "auto", "--log", "debug")
    kernel_id = gateway.start_kernel()["id"]
    with gateway.socket(kernel_id) as client:
        pid = python_pid(client)
    gateway.stop(signal.SIGTERM)
    kill(pid)
    eventually(lambda: not alive(pid), "the kernel has ended")
    gateway.start()
    try:
        eventually(lambda: '"restarted"' in gateway.rest("GET", f"api/kernels/{kernel_id}/log?follow=false").text.replace(" ", ""), "the kernel is restarted")
        with gateway.socket(kernel_id) as client:
            assert python_pid(client) != pid
    except Exception:
        print(gateway.rest("GET", f"api/kernels/{kernel_id}/log?follow=false").text[-3000:])
        print(gateway.model(kernel_id))
        print("GWLOG", gateway.output[-9000:])
        raise
