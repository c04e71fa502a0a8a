"""Connections to the servers of one file, of which another thread can end the waiting."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from .shutdown import Shutdown


def connections_to(scheme: str, host: str, shutdown: Shutdown) -> urllib3.PoolManager:
    """Return the connections for addresses of a scheme, through the proxy that the environment
    names for the host. `shutdown`: ends what they wait for."""
    manager = _manager(scheme, host)
    manager.pool_classes_by_scheme = _pool_classes(shutdown)
    return manager


def _manager(scheme: str, host: str) -> urllib3.PoolManager:
    proxy = getproxies().get(scheme)
    if not proxy or proxy_bypass(host):
        return urllib3.PoolManager()
    secret = urllib3.util.parse_url(proxy).auth
    headers = urllib3.make_headers(proxy_basic_auth=unquote(secret)) if secret else None
    return urllib3.ProxyManager(
        proxy if "://" in proxy else f"http://{proxy}", proxy_headers=headers
    )


def _pool_classes(shutdown: Shutdown) -> dict[str, Any]:
    """Return the classes of pools whose connections are watched.

    By classes, as urllib3 makes connections where it needs them, of redirects too.
    """

    class Watched(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            shutdown.watch(self.sock)

    class WatchedWithTls(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            shutdown.watch(self.sock)

    class Pool(HTTPConnectionPool):
        ConnectionCls = Watched

    class PoolWithTls(HTTPSConnectionPool):
        ConnectionCls = WatchedWithTls

    return {"http": Pool, "https": PoolWithTls}
