"""Chromium without a window, driven over its debugging pipe: no library and no port is needed."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--no-first-run",
]
_PATIENCE = 30.0  # seconds


class Tab:
    """A page in a browser: what it shows, and everything that its console said."""

    def __init__(self, to_browser, from_browser):
        self._to, self._from, self._count, self._session = to_browser, from_browser, 0, None
        self.said = []  # of the console, of failed requests and uncaught errors
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """One command of the DevTools protocol, and its result."""
        self._count += 1
        wanted = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            wanted["sessionId"] = self._session
        self._to.write(json.dumps(wanted).encode() + b"\0")
        self._to.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _read(self):
        data = bytearray()
        while not data.endswith(b"\0"):
            byte = self._from.read(1)
            assert byte, "the browser has gone"
            data += byte
        message = json.loads(bytes(data[:-1]))
        said = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled":
                self.said.append((said["type"], [one.get("value", one.get("description")) for one in said["args"]]))
            case "Runtime.exceptionThrown":
                self.said.append(("exception", said["exceptionDetails"]))
            case "Log.entryAdded":
                self.said.append((said["entry"]["level"], said["entry"]["text"], said["entry"].get("url")))
        return message

    def run(self, script):
        """The value of an expression in the page; promises are awaited."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script):
        """Waits until an expression is true."""
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            with contextlib.suppress(AssertionError):  # while another page loads
                if self.run(f"Boolean({script})"):
                    return
            time.sleep(0.05)
        seen = self.run("[location.href, document.activeElement.id, scrollY, document.body.innerText.slice(0, 600)]")
        raise AssertionError(f"{script} did not become true; the console said {self.said}, the page shows {seen}")

    def look(self, width=1280, height=900, dark=False, still=True):
        """The size of the window, and the person's wishes for dark pages and for pages without motion."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)
        # The page learns it with the next frame, and may then change its layout.
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def go(self, address):
        self.call("Page.navigate", url=address)
        self.until(f"location.href.startsWith({json.dumps(address)}) && document.readyState === 'complete'")

    def press(self, key, modifiers=0):
        codes = {
            "Enter": (13, "\r"),
            "Escape": (27, ""),
            "ArrowLeft": (37, ""),
            "ArrowUp": (38, ""),
            "ArrowRight": (39, ""),
            "ArrowDown": (40, ""),
        }
        code, text = codes.get(key, (ord(key.upper()[0]), key))
        keys = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", **keys, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **keys)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def middle(self, selector):
        """Where an element is in the window."""
        return self.run(f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
                        " return [b.x + b.width / 2, b.y + b.height / 2]; })()")  # fmt: skip

    def click(self, selector):
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        x, y = self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def point(self, selector):
        """Moves the mouse there."""
        x, y = self.middle(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def wheel(self, selector, down, modifiers=0):
        x, y = self.middle(selector)
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=down, modifiers=modifiers)

    def choose(self, selector, *files):
        """Files for an input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def picture(self):
        """What is seen, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextlib.contextmanager
def opened():
    """A tab of a browser of its own."""
    down, up = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Chromium reads commands from descriptor 3 and writes to 4; dash knows no numbers above 9.
        words = [CHROMIUM, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        script = f'exec "$@" 3<&{down[0]} 4>&{up[1]}'
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", *words],
            pass_fds=(down[0], up[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(down[0])
        os.close(up[1])
        with os.fdopen(down[1], "wb") as to_browser, os.fdopen(up[0], "rb") as from_browser:
            try:
                yield Tab(to_browser, from_browser)
            finally:
                process.terminate()
                process.wait(30)
