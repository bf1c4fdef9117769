"""Chromium, controlled by the Chrome DevTools Protocol."""

import asyncio
import itertools
import json
import shutil
import subprocess

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}


class Tab:
    """A browser tab that is controlled by the Chrome DevTools Protocol."""

    def __init__(self, socket):
        self.socket, self.numbers, self.errors = socket, itertools.count(1), []

    async def send(self, method, **parameters):
        number = next(self.numbers)
        await self.socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self.socket.receive()).data)
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(message["params"]["exceptionDetails"])
            if message.get("id") == number:
                return message["result"]

    async def value(self, expression):
        result = await self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def wait(self, condition, seconds=30):
        for _ in range(10 * seconds):
            if await self.value(f"document.readyState === 'complete' && !!({condition})"):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"not within {seconds} s: {condition}")

    async def key(self, key, **options):
        codes = {"ArrowRight": 39, "Enter": 13, "Escape": 27, "Tab": 9}
        event = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper())), **options}
        if len(key) == 1 or key == "Enter":
            event["text"] = "\r" if key == "Enter" else key
        await self.send("Input.dispatchKeyEvent", type="keyDown", **event)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **event)


def visit(url, tmp_path, script, *, ready, size=None):
    """Run `script(tab)` on the page in a fresh Chromium, as soon as the expression `ready` is true."""
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    arguments += [f"--user-data-dir={tmp_path / 'profile'}", "--disable-dev-shm-usage", "about:blank"]
    process = subprocess.Popen([CHROMIUM, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        address = next(line.split()[-1] for line in process.stderr if "DevTools listening" in line)
        return asyncio.run(_visit(address.split("/")[2], url, script, ready, size))
    finally:
        process.kill()
        process.wait()


async def _visit(host, url, script, ready, size):
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://{host}/json/list") as answer:
            target = next(item for item in await answer.json() if item["type"] == "page")
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            tab = Tab(socket)
            await tab.send("Runtime.enable")
            await tab.send("Page.enable")
            if size:
                await tab.send("Emulation.setDeviceMetricsOverride", **size)
            await tab.send("Page.navigate", url=url)
            await tab.wait(ready)
            result = await script(tab)
            assert not tab.errors
            return result
