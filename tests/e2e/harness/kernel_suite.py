"""jupyter_kernel_test, changed to wait for messages instead of fixed times."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import jupyter_kernel_test
from jupyter_kernel_test.msgspec_v5 import validate_message


class PatientKernelTests(jupyter_kernel_test.KernelTests):
    """Waits up to 60 s for each message, and for the end of earlier requests.

    The original waits 0.1 s for the next message, and takes 0.1 s of silence as the end of earlier requests. Both fail
    on a busy machine.
    """

    def execute_helper(self, *args: Any, **options: Any) -> Any:
        iopub = self.kc.iopub_channel
        get_msg = iopub.get_msg
        with patch.object(iopub, "get_msg", lambda timeout: get_msg(timeout=60)):
            return super().execute_helper(*args, **options)

    def flush_channels(self) -> None:
        request = self.kc.kernel_info()
        for channel, last in ((self.kc.shell_channel, "kernel_info_reply"), (self.kc.iopub_channel, "idle")):
            while True:
                message = channel.get_msg(timeout=60)
                validate_message(message)
                kind = message["content"].get("execution_state", message["msg_type"])
                if message["parent_header"].get("msg_id") == request and kind == last:
                    break
