"""The process group of the training workers, which reach each other at their nodes' addresses."""

import os
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


class NodeAddressTorchConfig(TorchConfig):
    """Ray Train's process group, in which Gloo listens at the address by which Ray knows the node.

    By itself Gloo listens at the address of the host's name. Debian's installer gives that name 127.0.1.1, where no
    worker of another node finds it. NCCL chooses an interface by itself.
    """

    @property
    def backend_cls(self) -> Any:
        """The class that starts the process group."""
        parent: Any = super().backend_cls

        class NodeAddressBackend(parent):
            def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
                if len(set(worker_group.execute(ray.util.get_node_ip_address))) > 1:
                    worker_group.execute(set_gloo_interface)
                super().on_start(worker_group, backend_config)

        return NodeAddressBackend


def set_gloo_interface() -> None:
    """Name the network interface of this node's address to Gloo, unless the environment names one."""
    if interface := find_interface(ray.util.get_node_ip_address()):
        os.environ.setdefault(GLOO_INTERFACE, interface)


def find_interface(address: str) -> str:
    """Return the network interface that has the address, or an empty string."""
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, given in interfaces if address in (each.address for each in given)), "")
