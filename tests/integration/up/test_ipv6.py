"""On a cluster of IPv6 addresses members and the operator listen there, and everywhere else as before."""

from __future__ import annotations

import socket

from languagepipes_node.health import MemberState, serve
from languagepipes_operator.settings import OperatorSettings
from support.example_pipes import container_of, of_kind, pipe_snapshot, rendered

NEEDED = {"LANGUAGEPIPES_OPERATOR_NODE_IMAGE": "image:1"}


def listening(every_address: str) -> set[str]:
    return {
        variable["value"].rpartition(":")[0]
        for deployment in of_kind(rendered(pipe_snapshot(), every_address=every_address), "Deployment")
        for variable in container_of(deployment)["env"]
        if variable["name"].endswith("_LISTEN")
    }


def test_members_listen_on_the_addresses_that_pods_have() -> None:
    six = OperatorSettings.from_environment({**NEEDED, "KUBERNETES_SERVICE_HOST": "fd00:10:96::1"})
    four = OperatorSettings.from_environment({**NEEDED, "KUBERNETES_SERVICE_HOST": "10.96.0.1"})

    assert (six.listen, listening(six.every_address)) == ("[::]:9090", {"[::]"})
    assert (four.listen, listening(four.every_address)) == ("0.0.0.0:9090", {"0.0.0.0"})
    assert OperatorSettings.from_environment(NEEDED).listen == "0.0.0.0:9090"


def test_a_member_that_listens_on_every_address_answers_both_kinds() -> None:
    server = serve("[::]:0", MemberState("stage"))
    try:
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, server.server_port), timeout=5):
                pass
    finally:
        server.shutdown()
        server.server_close()
