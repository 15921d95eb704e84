"""requests on goroutines: an adapter whose connections park.

    session = gmp.net.requests.Session()
    session.get("https://example.org/")

Or session.mount("https://", gmp.net.requests.Adapter()) on a session of your own.  A session is for one goroutine at a time,
as requests says of threads; the adapter, which has the connections, may be shared.
"""

from __future__ import annotations

from typing import Any

import requests
from requests.adapters import HTTPAdapter

from gmp.net.urllib3 import use


class Adapter(HTTPAdapter):
    """requests' HTTPAdapter, whose options it has, with connections that park the goroutine."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        use(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        return use(super().proxy_manager_for(*args, **kwargs))


class Session(requests.Session):
    """requests.Session with such an adapter for http and https."""

    def __init__(self) -> None:
        super().__init__()
        self.mount("http://", Adapter())
        self.mount("https://", Adapter())
