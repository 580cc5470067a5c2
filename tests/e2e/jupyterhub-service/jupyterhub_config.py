"""A hub with the user ada in the group staff, and bob. The gateway is its service kernelmux."""

import os

from jupyterhub.proxy import Proxy
from jupyterhub.spawner import SimpleLocalProcessSpawner


class NoProxy(Proxy):
    """Only the hub's API is used, so nothing has to be routed."""

    should_start = False

    async def add_route(self, routespec, target, data): ...

    async def delete_route(self, routespec): ...

    async def get_all_routes(self):
        return {}


c = get_config()  # noqa: F821
c.JupyterHub.proxy_class = NoProxy
c.JupyterHub.bind_url = os.environ["HUB_BIND_URL"]
c.JupyterHub.hub_bind_url = os.environ["HUB_BIND_URL"]
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.allow_all = True
c.JupyterHub.spawner_class = SimpleLocalProcessSpawner
c.JupyterHub.load_groups = {"staff": {"users": ["ada"]}}
c.JupyterHub.services = [
    {"name": "kernelmux"},
    {"name": "tests", "api_token": os.environ["TESTS_TOKEN"]},
]
c.JupyterHub.load_roles = [
    {"name": "tests", "scopes": ["admin:users", "tokens"], "services": ["tests"]},
    {"name": "user", "scopes": ["self", "access:services!service=kernelmux"]},
]
