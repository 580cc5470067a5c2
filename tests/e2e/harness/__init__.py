"""Helpers of the end-to-end tests: processes, the gateway, proxies, JupyterLab, a WebSocket client."""
