"""Parts of the end-to-end tests: processes, the gateway, a cutting proxy, JupyterLab, a bare kernel client."""
