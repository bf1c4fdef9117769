"""A cable with latency: two network devices, each of which sends what the other receives, a while later.

python -m benchmarks.chaos.delay_relay NEAR FAR SECONDS     # until it is ended

It needs root and /dev/net/tun, and no queueing discipline of the kernel, such as netem.
"""

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

SET_NAME = 0x400454CA  # TUNSETIFF
ETHERNET_FRAMES = 0x0002 | 0x1000  # IFF_TAP | IFF_NO_PI
LONGEST_FRAME = 65536


def relay(names: tuple[str, str], seconds: float) -> None:
    """Create the devices and send each frame on after `seconds`."""
    near, far = (open_device(name) for name in names)
    other, waiting = {near: far, far: near}, deque[tuple[float, int, bytes]]()
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for device in select.select(list(other), [], [], pause)[0]:
            waiting.append((time.monotonic() + seconds, other[device], os.read(device, LONGEST_FRAME)))
        while waiting and waiting[0][0] <= time.monotonic():
            _, device, frame = waiting.popleft()
            send(device, frame)


def open_device(name: str) -> int:
    """Create an Ethernet device of this name, and return its file."""
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, SET_NAME, struct.pack("16sH22x", name.encode(), ETHERNET_FRAMES))
    return device


def send(device: int, frame: bytes) -> None:
    """Send a frame; it is lost if the device is down, as on a cable."""
    try:
        os.write(device, frame)
    except OSError:
        return


if __name__ == "__main__":
    relay((sys.argv[1], sys.argv[2]), float(sys.argv[3]))
